{{/* What several objects need to agree on: Ray's version, where things are stored, how many pods there will be. */}}

{{- define "triptych.rayVersion" -}}2.60.0{{- end -}}

{{- define "triptych.registry" -}}
{{- default "sqlite:////data/registry.db" .Values.registry.url -}}
{{- end -}}

{{- define "triptych.runs" -}}
{{- printf "%s/runs" (.Values.storage.url | default "/data" | trimSuffix "/") -}}
{{- end -}}

{{- define "triptych.artifacts" -}}
{{- printf "%s/artifacts" (.Values.storage.url | default "/data" | trimSuffix "/") -}}
{{- end -}}

{{- define "triptych.dataClaim" -}}
{{- default (printf "%s-data" (include "triptych.fullname" .)) .Values.storage.existingClaim -}}
{{- end -}}

{{- define "triptych.cacheClaim" -}}
{{- default (printf "%s-models" (include "triptych.fullname" .)) .Values.modelCache.existingClaim -}}
{{- end -}}

{{/* A worker group's fields, those of the head where it leaves them out, as JSON. Argument: (list ROOT NAME WHO). */}}
{{- define "triptych.group" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- if not (hasKey $root.Values.groups $name) -}}
{{- fail (printf "%s: there is no group %q; groups has: %s" (index . 2) $name (keys $root.Values.groups | sortAlpha | join ", " | default "none")) -}}
{{- end -}}
{{- $group := mergeOverwrite (deepCopy $root.Values.head) (dict "replicas" 1) (deepCopy (index $root.Values.groups $name)) -}}
{{- $least := $root.Values.autoscaling.enabled | ternary 0 ($group.replicas | int) -}}
{{- if hasKey $group "minReplicas" -}}{{- $least = $group.minReplicas | int -}}{{- end -}}
{{- $most := $group.maxReplicas | default $group.replicas | int -}}
{{- if or (lt ($group.replicas | int) $least) (gt ($group.replicas | int) $most) -}}
{{- fail (printf "groups.%s: replicas (%d) must lie between minReplicas (%d) and maxReplicas (%d)" $name ($group.replicas | int) $least $most) -}}
{{- end -}}
{{- if and (not $root.Values.autoscaling.enabled) (or (ne $least ($group.replicas | int)) (ne $most ($group.replicas | int))) -}}
{{- fail (printf "groups.%s: minReplicas and maxReplicas act only with autoscaling.enabled: set that, or replicas alone" $name) -}}
{{- end -}}
{{- mergeOverwrite $group (dict "minReplicas" $least "maxReplicas" $most) | toJson -}}
{{- end -}}

{{/* Pods of one Ray cluster at its largest. Argument: (list ROOT GROUPS WHO). */}}
{{- define "triptych.clusterPods" -}}
{{- $root := index . 0 -}}
{{- $who := index . 2 -}}
{{- $pods := 1 -}}
{{- range index . 1 -}}
{{- $pods = add $pods (include "triptych.group" (list $root . $who) | fromJson).maxReplicas -}}
{{- end -}}
{{- $pods -}}
{{- end -}}

{{/* Ray pods of the release at its largest. */}}
{{- define "triptych.pods" -}}
{{- $pods := 0 -}}
{{- if .Values.service.enabled -}}
{{- $pods = add $pods (include "triptych.clusterPods" (list . .Values.service.groups "service.groups")) -}}
{{- end -}}
{{- if .Values.cluster.enabled -}}
{{- $pods = add $pods (include "triptych.clusterPods" (list . .Values.cluster.groups "cluster.groups")) -}}
{{- end -}}
{{- range $name, $job := .Values.jobs -}}
{{- $pods = add $pods (include "triptych.clusterPods" (list $ (default list $job.groups) (printf "jobs.%s.groups" $name))) -}}
{{- end -}}
{{- $pods -}}
{{- end -}}

{{/* Labels by which batch schedulers find their queue, as JSON. */}}
{{- define "triptych.queueLabels" -}}
{{- $labels := dict -}}
{{- with .Values.queue.kueue }}{{ $_ := set $labels "kueue.x-k8s.io/queue-name" . }}{{ end -}}
{{- with .Values.queue.volcano }}{{ $_ := set $labels "volcano.sh/queue-name" . }}{{ end -}}
{{- with .Values.queue.priorityClassName }}{{ $_ := set $labels "ray.io/priority-class-name" . }}{{ end -}}
{{- toJson $labels -}}
{{- end -}}

{{/* What a changed Ray cluster does to the endpoint: two at once only where they can share what they store. */}}
{{- define "triptych.upgrade" -}}
{{- if .Values.service.upgrade -}}
{{- .Values.service.upgrade -}}
{{- else -}}
{{- include "triptych.shared" . | empty | not | ternary "NewCluster" "None" -}}
{{- end -}}
{{- end -}}

{{/* Whether several pods, on several nodes, can share registry and storage: "true" or nothing. */}}
{{- define "triptych.shared" -}}
{{- $storage := or .Values.storage.url (eq .Values.storage.accessMode "ReadWriteMany") -}}
{{- $models := or (not .Values.modelCache.enabled) (eq .Values.modelCache.accessMode "ReadWriteMany") -}}
{{- if and .Values.registry.url $storage $models -}}true{{- end -}}
{{- end -}}

{{/* Egress that every pod needs: names. */}}
{{- define "triptych.dns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end -}}

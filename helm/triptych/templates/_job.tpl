{{/* A job's recipe as it was written: Helm reads YAML 1.1, where a label `no` is a truth value, so a text is never
written anew. Argument: (list ROOT NAME JOB). */}}
{{- define "triptych.recipe" -}}
{{- $job := index . 2 -}}
{{- $_ := include "triptych.readRecipe" . -}}
{{- kindIs "string" $job.recipe | ternary $job.recipe (toYaml $job.recipe) -}}
{{- end -}}

{{/* The recipe as Helm reads it, in JSON, to look at its fields. Argument: (list ROOT NAME JOB). */}}
{{- define "triptych.readRecipe" -}}
{{- $recipe := (index . 2).recipe -}}
{{- if kindIs "string" $recipe -}}
{{- $recipe = fromYaml $recipe -}}
{{- if hasKey $recipe "Error" -}}
{{- fail (printf "jobs.%s.recipe is not YAML: %s" (index . 1) $recipe.Error) -}}
{{- end -}}
{{- end -}}
{{- if or (not (hasKey $recipe "name")) (not (hasKey $recipe "stages")) -}}
{{- fail (printf "jobs.%s.recipe is no recipe: it has no name or no stages; `triptych plan` checks one" (index . 1)) -}}
{{- end -}}
{{- $recipe | toJson -}}
{{- end -}}

{{/* Options that give a job the chart's storage where its recipe names none. Argument: (list ROOT NAME JOB). */}}
{{- define "triptych.storageOptions" -}}
{{- $root := index . 0 -}}
{{- $own := default dict (include "triptych.readRecipe" . | fromJson).storage -}}
{{- $chart := dict "runs" (include "triptych.runs" $root) "registry" (include "triptych.registry" $root) "artifacts" (include "triptych.artifacts" $root) -}}
{{- range $field, $place := $chart }}
{{- if not (hasKey $own $field) }} --set {{ printf "storage.%s=%s" $field $place | squote }}{{ end }}
{{- end -}}
{{- end -}}

{{/* A job's name: RayJobs do not change once they run, so another recipe or stage is another job. */}}
{{- define "triptych.jobName" -}}
{{- $root := index . 0 -}}
{{- $job := index . 2 -}}
{{- $name := printf "%s-%s" (include "triptych.fullname" $root) (index . 1) -}}
{{- $who := printf "jobs.%s" (index . 1) -}}
{{- if $job.schedule -}}
{{- include "triptych.short" (list $name 36 $who) -}}
{{- else -}}
{{- $digest := printf "%s%s%s" (include "triptych.recipe" .) (include "triptych.storageOptions" .) (default "" $job.stage) | sha256sum | trunc 8 -}}
{{- include "triptych.short" (list (printf "%s-%s" $name $digest) 47 $who) -}}
{{- end -}}
{{- end -}}

{{/* The spec of a RayJob. Argument: (list ROOT NAME JOB). */}}
{{- define "triptych.rayJob" -}}
{{- $root := index . 0 -}}
{{- $job := index . 2 -}}
{{- $component := printf "job-%s" (index . 1) -}}
# Nothing of the recipe passes through a shell. The same command goes on after an interruption.
entrypoint: triptych run /etc/triptych/recipe.yaml --json
{{- with $job.stage }} --stage {{ . }}{{ end }}
{{- include "triptych.storageOptions" . }}
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ default 600 $job.keepSeconds }}
backoffLimit: {{ default 2 $job.retries }}
{{- with $job.deadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
submitterPodTemplate:
  metadata:
    labels:
      {{- include "triptych.selector" (list $root $component) | nindent 6 }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "triptych.serviceAccount" $root }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with $root.Values.image.pullSecrets }}
    imagePullSecrets:
      {{- range . }}
      - name: {{ . }}
      {{- end }}
    {{- end }}
    securityContext:
      {{- include "triptych.podSecurity" $root | nindent 6 }}
    containers:
      - name: submitter
        image: {{ include "triptych.image" $root }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        env:
          - {name: HOME, value: /tmp}
        resources:
          requests: {cpu: 500m, memory: 1Gi}
          limits: {cpu: 500m, memory: 1Gi}
        securityContext:
          {{- include "triptych.containerSecurity" $root | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - name: tmp
        emptyDir: {}
rayClusterSpec:
  {{- include "triptych.rayCluster" (dict "root" $root "component" $component "groups" (default list $job.groups) "who" (printf "jobs.%s.groups" (index . 1)) "recipe" (include "triptych.jobName" .)) | nindent 2 }}
{{- end -}}

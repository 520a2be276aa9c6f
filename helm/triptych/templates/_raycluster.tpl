{{/* The spec of a Ray cluster. Argument: dict of root, component, groups, who (for messages), serving, recipe. */}}
{{- define "triptych.rayCluster" -}}
{{- $root := .root -}}
{{- $call := . -}}
{{- if and .groups $root.Values.head.gpu.count -}}
{{- fail (printf "head.gpu.count: beside the worker groups of %s the head runs nothing: give the GPUs to groups" .who) -}}
{{- end -}}
rayVersion: {{ include "triptych.rayVersion" $root | quote }}
{{- with $root.Values.auth }}
authOptions:
  mode: {{ .enabled | ternary "token" "disabled" }}
  {{- with .existingSecret }}
  secretName: {{ . }}
  {{- end }}
{{- end }}
{{- if $root.Values.autoscaling.enabled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ $root.Values.autoscaling.idleSeconds }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  resources:
    requests: {cpu: 500m, memory: 1Gi}
    limits: {cpu: 500m, memory: 1Gi}
  securityContext:
    {{- include "triptych.containerSecurity" $root | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- with $root.Values.redis }}
{{- /* A job whose head is lost begins anew, and goes on from its checkpoints. */}}
{{- if and .address (not $call.recipe) }}
gcsFaultToleranceOptions:
  redisAddress: {{ .address | quote }}
  {{- with .passwordSecret }}
  {{- if .name }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    dashboard-host: 0.0.0.0
    {{- if .groups }}
    num-cpus: "0"
    num-gpus: "0"
    {{- else if $root.Values.head.gpu.count }}
    num-gpus: {{ $root.Values.head.gpu.count | quote }}
    {{- end }}
  template:
    {{- include "triptych.pod" (merge (dict "pod" $root.Values.head "name" "head") $call) | nindent 4 }}
{{- with .groups }}
workerGroupSpecs:
  {{- range . }}
  {{- $group := include "triptych.group" (list $root . $call.who) | fromJson }}
  - groupName: {{ . }}
    replicas: {{ $group.replicas }}
    minReplicas: {{ $group.minReplicas }}
    maxReplicas: {{ $group.maxReplicas }}
    rayStartParams:
      {{- if $group.gpu.count }}
      num-gpus: {{ $group.gpu.count | quote }}
      {{- else }} {}
      {{- end }}
    template:
      {{- include "triptych.pod" (merge (dict "pod" $group "name" .) $call) | nindent 6 }}
  {{- end }}
{{- end }}
{{- end -}}

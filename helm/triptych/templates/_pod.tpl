{{/* The security that the "restricted" pod standard asks for. */}}
{{- define "triptych.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "triptych.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Environment of everything that runs Triptych's code. */}}
{{- define "triptych.env" -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /cache/huggingface}
- {name: TRIPTYCH_CACHE, value: /cache/triptych}
- {name: TRIPTYCH_REGISTRY, value: {{ include "triptych.registry" . | quote }}}
- {name: TRIPTYCH_ARTIFACTS, value: {{ include "triptych.artifacts" . | quote }}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
{{- if .Values.modelCache.offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- with .Values.registry.passwordSecret }}
{{- if .name }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "triptych.envFrom" -}}
{{- range $index, $name := .Values.envSecrets -}}
{{- if $index }}
{{ end -}}
- secretRef: {name: {{ $name }}}
{{- end -}}
{{- end -}}

{{- define "triptych.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- if not .Values.storage.url }}
- {name: data, mountPath: /data}
{{- end }}
{{- end -}}

{{- define "triptych.volumes" -}}
- name: tmp
  emptyDir: {}
- name: cache
  {{- if .Values.modelCache.enabled }}
  persistentVolumeClaim: {claimName: {{ include "triptych.cacheClaim" . }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- if not .Values.storage.url }}
- name: data
  persistentVolumeClaim: {claimName: {{ include "triptych.dataClaim" . }}}
{{- end }}
{{- end -}}

{{/* The GPU resource that a group asks for. */}}
{{- define "triptych.gpuResource" -}}
{{- if .mig -}}nvidia.com/mig-{{ .mig }}{{- else -}}{{ .resource }}{{- end -}}
{{- end -}}

{{/* Requests or limits, which are equal: Ray counts on what it was promised. */}}
{{- define "triptych.amounts" -}}
cpu: {{ .cpu | quote }}
memory: {{ .memory | quote }}
{{- if .gpu.count }}
{{ include "triptych.gpuResource" .gpu }}: {{ .gpu.count }}
{{- end }}
{{- end -}}

{{/* The template of a Ray pod.
Argument: dict of root, component, pod (fields of `head` or of a group), name (`head` or the group's), serving, recipe. */}}
{{- define "triptych.pod" -}}
{{- $root := .root -}}
{{- $pod := .pod -}}
{{- $head := eq .name "head" -}}
metadata:
  labels:
    {{- $selector := include "triptych.selector" (list $root .component) | fromYaml }}
    {{- merge $selector $pod.podLabels $root.Values.commonLabels | toYaml | nindent 4 }}
  {{- with merge (dict) $pod.podAnnotations $root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "triptych.serviceAccount" $root }}
  # Only Ray's autoscaler, in the head's pod, talks to Kubernetes.
  automountServiceAccountToken: {{ and $head $root.Values.autoscaling.enabled }}
  enableServiceLinks: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- include "triptych.podSecurity" $root | nindent 4 }}
  {{- if .serving }}
  terminationGracePeriodSeconds: {{ add $root.Values.service.drainSeconds 15 }}
  {{- end }}
  {{- if or $pod.nodeSelector $pod.gpu.type }}
  nodeSelector:
    {{- with $pod.gpu.type }}
    {{ $pod.gpu.typeLabel }}: {{ . | quote }}
    {{- end }}
    {{- with $pod.nodeSelector }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- with $pod.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $pod.spreadOver (not $head) }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: {{ $pod.spreadOver }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "triptych.selector" (list $root .component) | nindent 10 }}
          ray.io/group: {{ .name }}
  {{- end }}
  {{- with $pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $pod.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $pod.schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- if and .serving $head }}
  # The endpoint does not start without a registry, and waits here for its database.
  initContainers:
    - name: registry
      image: {{ include "triptych.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -c, "import os; from triptych.registry import Registry; Registry(os.environ['TRIPTYCH_REGISTRY'])"]
      env:
        {{- include "triptych.env" $root | nindent 8 }}
      {{- with include "triptych.envFrom" $root }}
      envFrom:
        {{- . | nindent 8 }}
      {{- end }}
      resources:
        requests: {cpu: 500m, memory: 512Mi}
        limits: {cpu: 500m, memory: 512Mi}
      securityContext:
        {{- include "triptych.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "triptych.mounts" $root | nindent 8 }}
  {{- end }}
  containers:
    - name: {{ $head | ternary "ray-head" "ray-worker" }}
      image: {{ include "triptych.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      env:
        {{- include "triptych.env" $root | nindent 8 }}
        {{- with $pod.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with include "triptych.envFrom" $root }}
      envFrom:
        {{- . | nindent 8 }}
      {{- end }}
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
        {{- if .serving }}
        - {name: serve, containerPort: 8000}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      {{- if and .serving (not $head) }}
      # KubeRay's own probe of a serving worker calls wget, which the image does not have.
      readinessProbe:
        httpGet: {path: /-/healthz, port: serve}
        initialDelaySeconds: 10
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      {{- end }}
      {{- if .serving }}
      lifecycle:
        preStop:
          exec:
            # New requests go elsewhere before this pod stops taking them.
            command: [sleep, "15"]
      {{- end }}
      resources:
        requests:
          {{- include "triptych.amounts" $pod | nindent 10 }}
        limits:
          {{- include "triptych.amounts" $pod | nindent 10 }}
      securityContext:
        {{- include "triptych.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "triptych.mounts" $root | nindent 8 }}
        - {name: shm, mountPath: /dev/shm}
        {{- if and .recipe $head }}
        - {name: recipe, mountPath: /etc/triptych, readOnly: true}
        {{- end }}
  volumes:
    {{- include "triptych.volumes" $root | nindent 4 }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ default $pod.memory $pod.shm }}}
    {{- if and .recipe $head }}
    - name: recipe
      configMap: {name: {{ .recipe }}}
    {{- end }}
{{- end -}}

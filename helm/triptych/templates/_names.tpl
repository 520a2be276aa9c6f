{{- define "triptych.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name -}}
{{- end -}}
{{- end -}}

{{/* A name of at most so many characters, or a failure. Argument: (list NAME MOST WHAT). */}}
{{- define "triptych.short" -}}
{{- $name := index . 0 -}}
{{- if gt (len $name) (index . 1) -}}
{{- fail (printf "%s: the name %q has %d characters, KubeRay takes %d: choose a shorter release name, fullnameOverride or job name" (index . 2) $name (len $name) (index . 1)) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "triptych.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "triptych.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change, by which pods are selected. Argument: (list ROOT COMPONENT). */}}
{{- define "triptych.selector" -}}
app.kubernetes.io/name: {{ default (index . 0).Chart.Name (index . 0).Values.nameOverride }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object; the chart's own cannot be overridden. Argument: (list ROOT COMPONENT), and a map of others. */}}
{{- define "triptych.labels" -}}
{{- $root := index . 0 -}}
{{- $labels := include "triptych.selector" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $labels "app.kubernetes.io/part-of" "triptych" -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") -}}
{{- if gt (len .) 2 -}}
{{- $labels = merge $labels (index . 2) -}}
{{- end -}}
{{- merge $labels $root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Metadata of an object. Argument: (list ROOT COMPONENT NAME LABELS ANNOTATIONS); the maps may be left out. */}}
{{- define "triptych.metadata" -}}
{{- $root := index . 0 -}}
{{- $more := concat (slice . 3) (list dict dict) -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "triptych.labels" (list $root (index . 1) (index $more 0)) | nindent 2 }}
{{- with merge (dict) (index $more 1) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "triptych.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

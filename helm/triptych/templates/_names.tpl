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

{{/* Labels of an object. Argument: (list ROOT COMPONENT). */}}
{{- define "triptych.labels" -}}
{{- $root := index . 0 -}}
{{ include "triptych.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: triptych
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object; more labels can follow it. Argument: (list ROOT COMPONENT NAME). */}}
{{- define "triptych.metadata" -}}
name: {{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
{{- with (index . 0).Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "triptych.labels" . | nindent 2 }}
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

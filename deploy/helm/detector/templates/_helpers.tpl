{{- define "detector.labels" -}}
app.kubernetes.io/name: detector
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "detector.selector" -}}
app.kubernetes.io/name: detector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "detector.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The port of metrics and probes; empty where the configuration has none. */}}
{{- define "detector.port" -}}
{{- with .Values.config.metrics -}}
{{- with .listen -}}
{{ regexFind "[0-9]+$" . }}
{{- end -}}
{{- end -}}
{{- end }}

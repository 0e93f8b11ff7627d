{{- define "pingora-mcp.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "pingora-mcp.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pingora-mcp.labels" -}}
{{ include "pingora-mcp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pingora-mcp.port" -}}
{{- .Values.service.port | default (empty .Values.tls.secret | ternary 80 443) -}}
{{- end -}}

{{/* The configuration file: what the chart sets wins over 'config'. */}}
{{- define "pingora-mcp.configuration" -}}
{{- $_ := required "config.routes: expected at least one route" .Values.config.routes -}}
{{- $listener := dict "address" "0.0.0.0:8080" -}}
{{- if .Values.tls.secret -}}
{{- $certificate := dict "certificate" "/etc/pingora-mcp/tls/tls.crt" "key" "/etc/pingora-mcp/tls/tls.key" -}}
{{- $_ := set $listener "tls" (dict "certificates" (list $certificate)) -}}
{{- end -}}
{{- $drain := dict "streams_after" (printf "%vs" .Values.drain.streamsAfter) "deadline" (printf "%vs" .Values.drain.deadline) -}}
{{- $mcp := dict "listeners" (list $listener) "admin" (dict "address" "0.0.0.0:9090" "allow_network" true) "drain" $drain -}}
{{- if .Values.seal.keys -}}
{{- $keys := list -}}
{{- range $position, $_ := .Values.seal.keys -}}
{{- $keys = append $keys (printf "${SEAL_KEY_%d}" $position) -}}
{{- end -}}
{{- $_ := set $mcp "sessions" (dict "seal" (dict "keys" $keys)) -}}
{{- end -}}
version: 1
threads: {{ .Values.threads }}
mcp:
{{ mergeOverwrite (deepCopy .Values.config) $mcp | toYaml | indent 2 }}
{{- end -}}

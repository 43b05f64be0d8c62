{{/* The name of everything: the release's, with the chart's unless it is in it. */}}
{{- define "lightcone.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which pods are selected. They must never change. */}}
{{- define "lightcone.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The Secret with the keys; empty where there is no authentication. */}}
{{- define "lightcone.secret" -}}
{{- if and .Values.keys.existingSecret .Values.keys.create -}}
{{- fail "keys: give existingSecret or create, not both" -}}
{{- end -}}
{{- if .Values.keys.existingSecret -}}
{{- .Values.keys.existingSecret -}}
{{- else if .Values.keys.create -}}
{{- include "lightcone.name" . -}}
{{- end -}}
{{- end -}}

{{/* The claim of the model volume; empty where each pod has its own. */}}
{{- define "lightcone.claim" -}}
{{- if and .Values.modelVolume.existingClaim .Values.modelVolume.create -}}
{{- fail "modelVolume: give existingClaim or create, not both" -}}
{{- end -}}
{{- if .Values.modelVolume.existingClaim -}}
{{- .Values.modelVolume.existingClaim -}}
{{- else if .Values.modelVolume.create -}}
{{- printf "%s-models" (include "lightcone.name" .) -}}
{{- end -}}
{{- end -}}

{{/* The value of an option as its variable holds it. Numbers of YAML may come as floating-point ones: 1e+06. */}}
{{- define "lightcone.value" -}}
{{- if kindIs "slice" . -}}
{{- join "," . | quote -}}
{{- else if and (kindIs "float64" .) (eq (toString (floor .)) (toString .)) -}}
{{- int64 . | toString | quote -}}
{{- else -}}
{{- toString . | quote -}}
{{- end -}}
{{- end -}}

{{/* The server's options as variables, by name. */}}
{{- define "lightcone.options" -}}
{{- $options := dict "public_metrics" .Values.publicMetrics -}}
{{- if .Values.model -}}
{{- $_ := set $options "model" .Values.model -}}
{{- end -}}
{{- $_ := set $options "drain_delay" .Values.drain.delay -}}
{{- $_ := set $options "drain_timeout" .Values.drain.timeout -}}
{{- $_ := set $options "engine_start_timeout" .Values.loading.timeout -}}
{{- if gt (int .Values.gpu.count) 1 -}}
{{- $_ := set $options "tensor_parallel_size" .Values.gpu.count -}}
{{- end -}}
{{- if include "lightcone.secret" . -}}
{{- $_ := set $options "api_key_file" "/var/run/secrets/lightcone/api-keys" -}}
{{- end -}}
{{- if .Values.tracing.endpoint -}}
{{- $_ := set $options "otlp_traces_endpoint" .Values.tracing.endpoint -}}
{{- end -}}
{{- range $name, $value := .Values.options -}}
{{- if hasKey $options $name -}}
{{- fail (printf "options.%s is set by another value of this chart" $name) -}}
{{- end -}}
{{- $_ := set $options $name $value -}}
{{- end -}}
{{- range $name, $value := $options }}
- {name: LIGHTCONE_{{ upper $name }}, value: {{ include "lightcone.value" $value }}}
{{- end }}
{{- end -}}

{{/* Labels of every object. The names of objects are fixed: there is one Farshore per cluster. */}}
{{- define "farshore.labels" -}}
app.kubernetes.io/name: farshore
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Image of a part: dict "root" $ "image" .Values.x.image */}}
{{- define "farshore.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* User name of the controller's ServiceAccount. */}}
{{- define "farshore.controllerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:farshore-controller
{{- end }}

{{/* Deployment of a part: dict "root" $ "name" "farshore-x" "component" "x" "part" .Values.x */}}
{{- define "farshore.deployment" -}}
{{- $selector := dict "app.kubernetes.io/name" "farshore" "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/component" .component }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "farshore.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  replicas: {{ .part.replicas }}
  selector:
    matchLabels: {{- toYaml $selector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "farshore.labels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
        {{- with .part.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .name }}
        {{- with .part.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ .name }}
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      {{- with .part.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: {{ .name }}
          image: {{ include "farshore.image" (dict "root" .root "image" .part.image) | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          {{- with .part.extraArgs }}
          args: {{- toYaml . | nindent 12 }}
          {{- end }}
          env:
            - name: RUST_LOG
              value: {{ .root.Values.logLevel | quote }}
            - name: POD_NAME
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            - name: POD_NAMESPACE
              valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
            {{- with .part.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          {{- with .part.resources }}
          resources: {{- toYaml . | nindent 12 }}
          {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- toYaml $selector | nindent 14 }}
      {{- with .part.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .part.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .part.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- if gt (int .part.replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "farshore.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- toYaml $selector | nindent 6 }}
{{- end }}
{{- end }}

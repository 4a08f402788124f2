{{- define "quarry.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* Short enough that "-controller" and Kubernetes' own suffixes still fit in a label. */}}
{{- define "quarry.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "quarry.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "quarry.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "quarry.selector" -}}
app.kubernetes.io/name: {{ include "quarry.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "quarry.labels" -}}
{{ include "quarry.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "quarry.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "quarry.agentAccount" -}}{{ include "quarry.fullname" . }}-agent{{- end }}
{{- define "quarry.controllerAccount" -}}{{ include "quarry.fullname" . }}-controller{{- end }}

{{/* A sidecar's image: (list . "provisioner"). */}}
{{- define "quarry.sidecarImage" -}}
{{- $root := index . 0 }}{{- $image := (index $root.Values.csi (index . 1)).image }}
{{- $registry := required "csi.enabled needs csi.sidecarRegistry: the registry that sig-storage/csi-provisioner and sig-storage/csi-resizer are taken from" $root.Values.csi.sidecarRegistry }}
{{- printf "%s/%s:%s" (trimSuffix "/" $registry) $image.repository $image.tag }}
{{- end }}

{{/*
The directories of the host that hold pools, as a JSON list, sorted: hostPaths, and the path of every pool of every
node that is not below one of them.
*/}}
{{- define "quarry.poolDirectories" -}}
{{- $paths := list }}
{{- range .Values.pools }}{{- $paths = append $paths .path }}{{- end }}
{{- range .Values.nodes }}{{- range .pools }}{{- $paths = append $paths .path }}{{- end }}{{- end }}
{{- $dirs := .Values.hostPaths }}
{{- range $path := $paths }}
{{- $covered := false }}
{{- range $.Values.hostPaths }}{{- if hasPrefix (printf "%s/" .) (printf "%s/" $path) }}{{- $covered = true }}{{- end }}{{- end }}
{{- if not $covered }}{{- $dirs = append $dirs $path }}{{- end }}
{{- end }}
{{- $dirs | uniq | sortAlpha | toJson }}
{{- end }}

{{- define "quarry.agentConfig" -}}
{{ dict "pools" .Values.pools "nodes" .Values.nodes "byClaimIndex" .Values.byClaimIndex "heavyJobs" (int .Values.heavyJobs) | toYaml }}
{{- end }}

{{/* Probes of a container that serves /healthz and /readyz on the port named health. */}}
{{- define "quarry.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{/* A StorageClass: (list . class). */}}
{{- define "quarry.storageClass" -}}
{{- $root := index . 0 }}{{- $c := index . 1 }}
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: {{ $c.name }}
  labels:
    {{- include "quarry.labels" $root | nindent 4 }}
    {{- with $c.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $c.default $c.annotations }}
  annotations:
    {{- if $c.default }}
    storageclass.kubernetes.io/is-default-class: "true"
    {{- end }}
    {{- with $c.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
provisioner: {{ $c.provisioner | default "local.quarry.storage" }}
reclaimPolicy: {{ $c.reclaimPolicy | default "Delete" }}
volumeBindingMode: {{ $c.volumeBindingMode | default "WaitForFirstConsumer" }}
allowVolumeExpansion: {{ ternary $c.allowVolumeExpansion true (hasKey $c "allowVolumeExpansion") }}
{{- with $c.mountOptions }}
mountOptions:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with $c.parameters }}
parameters:
{{- range $key, $value := . }}
  {{ $key }}: {{ toString $value | quote }}
{{- end }}
{{- end }}
{{- with $c.allowedTopologies }}
allowedTopologies:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
What the cluster's nodes need that these values do not give, as far as it can be told: nothing where the nodes cannot
be read (helm template, --dry-run).
*/}}
{{- define "quarry.remarks" -}}
{{- $systems := list .Capabilities.KubeVersion.Version }}
{{- range (lookup "v1" "Node" "" "").items | default list }}
{{- $systems = append $systems (dig "status" "nodeInfo" "osImage" "" .) }}
{{- $systems = append $systems (dig "status" "nodeInfo" "kubeletVersion" "" .) }}
{{- end }}
{{- $systems = $systems | uniq | join "\n" }}
{{- $unwritable := list }}
{{- range include "quarry.poolDirectories" . | fromJsonArray }}
{{- if not (regexMatch "^/(var|mnt|home|local)/" .) }}{{- $unwritable = append $unwritable . }}{{- end }}
{{- end }}
{{- with regexFind "Talos|Bottlerocket|Container-Optimized OS|CoreOS|MicroOS|SLE Micro|Leap Micro|SUSE Linux Micro" $systems }}
{{- if $unwritable }}
* {{ . }}: nothing can be made in the root directory, and agents stay in ContainerCreating there. Give pools a path
  below /var in place of {{ join ", " $unwritable }}.
{{- end }}
{{- end }}
{{- if contains "Talos" $systems }}
* Talos: kubelet runs in a container. Classic volumes need the pools' directories and /run/quarry among
  machine.kubelet.extraMounts, with the options bind, rshared and rw.
{{- end }}
{{- if contains "Container-Optimized OS" $systems }}
{{- range include "quarry.poolDirectories" . | fromJsonArray }}
{{- if hasPrefix "/mnt/disks" . }}
* Container-Optimized OS: /mnt/disks is in memory. Whatever is not a mount below it is gone after a reboot: set
  requireMountpoint for the pools there.
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.csi.enabled (contains "+k0s" $systems) (eq .Values.kubeletDir "/var/lib/kubelet") }}
* k0s: kubelet's directory is /var/lib/k0s/kubelet. CSI volumes need kubeletDir set to it.
{{- end }}
{{- end }}

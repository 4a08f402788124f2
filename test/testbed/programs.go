package testbed

import (
	"fmt"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/test/testbed/build"
	"github.com/quarry-storage/quarry/test/testbed/network"
	"github.com/quarry-storage/quarry/test/testbed/node"
)

// Where things lie inside a node. The directories of etcd, kubelet and
// Kubernetes' configuration are those of kubeadm.
const (
	binDir        = "/opt/testbed"
	kubernetesDir = "/etc/kubernetes"
	pkiDir        = kubernetesDir + "/pki"
	etcdDir       = "/var/lib/etcd"
	kubeletDir    = "/var/lib/kubelet"
	pluginDir     = kubeletDir + "/volume-plugins"
	cniDir        = "/etc/testbed/cni" // not /etc/cni/net.d, where the machine may have its own
	runtimeSocket = "/run/containerd/containerd.sock"
	searchPath    = binDir + "/kube:" + binDir +
		"/containerd:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	serviceSubnet  = "10.96.0.0/16"
	podSupernet    = "10.244.0.0/16"
	apiServerPort  = 6443
	kubeletHealth  = 10248
	proxyHealth    = 10256
	etcdHealth     = 2381
	managerPort    = 10257
	schedulerPort  = 10259
	cgroupRoot     = "/quarry-testbed"
	containerdName = "containerd"
)

// program is a program of a node and how to ask it for its health over HTTP.
type program struct {
	node.Program
	health string // URL; empty: it has none
}

// controlPlane are the programs only node1 runs, in the order of their start.
// Everything is reached by the node's address, so that the machine can ask for
// its health too.
func (c Config) controlPlane() []program {
	ip := network.NodeIP(1).String()
	anywhere := "--bind-address=0.0.0.0"
	return []program{
		c.program("etcd", fmt.Sprintf("http://%s:%d/health", ip, etcdHealth),
			"--name=testbed", "--data-dir="+etcdDir, "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=testbed=http://127.0.0.1:2380", fmt.Sprintf("--listen-metrics-urls=http://%s:%d",
				ip, etcdHealth),
			"--unsafe-no-fsync"), // a node's death loses nothing that was written: the page cache is the machine's
		c.program("kube-apiserver", serverURL()+"/readyz",
			"--etcd-servers=http://127.0.0.1:2379", anywhere,
			fmt.Sprintf("--secure-port=%d", apiServerPort), "--advertise-address="+ip,
			"--tls-cert-file="+pkiDir+"/apiserver.crt",
			"--tls-private-key-file="+pkiDir+"/apiserver.key", "--client-ca-file="+pkiDir+"/ca.crt",
			"--kubelet-client-certificate="+pkiDir+"/apiserver-kubelet-client.crt",
			"--kubelet-client-key="+pkiDir+"/apiserver-kubelet-client.key",
			"--kubelet-certificate-authority="+pkiDir+"/ca.crt", "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file="+pkiDir+"/sa.pub", "--service-account-signing-key-file="+pkiDir+"/sa.key",
			"--service-cluster-ip-range="+serviceSubnet, "--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--requestheader-client-ca-file="+pkiDir+"/front-proxy-ca.crt",
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file="+pkiDir+"/front-proxy-client.crt",
			"--proxy-client-key-file="+pkiDir+"/front-proxy-client.key"),
		c.program("kube-controller-manager", fmt.Sprintf("https://%s:%d/healthz", ip, managerPort),
			slices.Concat(clientOf("controller-manager"), []string{
				anywhere, "--leader-elect=false", "--use-service-account-credentials=true",
				"--service-account-private-key-file=" + pkiDir + "/sa.key", "--root-ca-file=" + pkiDir + "/ca.crt",
				"--cluster-signing-cert-file=" + pkiDir + "/ca.crt", "--cluster-signing-key-file=" + pkiDir + "/ca.key",
				"--flex-volume-plugin-dir=" + pluginDir,
				// At the default rate of 20, it binds 4 claims per second, however
				// fast the provisioner is.
				"--kube-api-qps=1000", "--kube-api-burst=2000"})...),
		c.program("kube-scheduler", fmt.Sprintf("https://%s:%d/healthz", ip, schedulerPort),
			slices.Concat(clientOf("scheduler"), []string{
				anywhere, "--leader-elect=false", "--kube-api-qps=1000", "--kube-api-burst=2000"})...),
		// kube-proxy's user may read what it needs: services and endpoints.
		c.program("cluster-dns", "", "--kubeconfig="+kubernetesDir+"/proxy.conf", "--listen="+ip+":53"),
	}
}

// runtime is the container runtime of a node.
func (c Config) runtime() program {
	return c.program(containerdName, "", "--config=/etc/containerd/config.toml")
}

// workers are the programs a node joins the cluster with.
func (c Config) workers(index int) []program {
	name, ip := nodeName(index), network.NodeIP(index).String()
	kubelet := []string{
		"--config=" + kubernetesDir + "/kubelet.yaml", "--kubeconfig=" + kubernetesDir + "/kubelet.conf",
		"--hostname-override=" + name, "--node-ip=" + ip, "--v=2",
	}
	if label := c.HostnameLabels[name]; label != "" {
		kubelet = append(kubelet, "--node-labels=kubernetes.io/hostname="+label)
	}
	return []program{
		c.program("kubelet", fmt.Sprintf("http://%s:%d/healthz", ip, kubeletHealth), kubelet...),
		c.program("kube-proxy", fmt.Sprintf("http://%s:%d/livez", ip, proxyHealth),
			"--kubeconfig="+kubernetesDir+"/proxy.conf",
			"--hostname-override="+name, "--proxy-mode=iptables", "--cluster-cidr="+podSupernet,
			"--bind-address="+ip, fmt.Sprintf("--healthz-bind-address=%s:%d", ip, proxyHealth),
			"--metrics-bind-address=127.0.0.1",
			// Zero leaves these settings of the kernel, which are the
			// machine's, as they are.
			"--conntrack-max-per-core=0", "--conntrack-min=0",
			"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"),
	}
}

// programs are all programs of a node, in the order of their start.
func (c Config) programs(index int) []program {
	all := []program{c.runtime()}
	if index == 1 {
		all = append(all, c.controlPlane()...)
	}
	return append(all, c.workers(index)...)
}

func (c Config) program(name, health string, arguments ...string) program {
	command := slices.Concat([]string{name}, arguments, c.ExtraArgs[name])
	return program{Program: node.Program{Name: name, Args: command}, health: health}
}

func clientOf(user string) []string {
	file := kubernetesDir + "/" + user + ".conf"
	return []string{"--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file}
}

func serverURL() string { return fmt.Sprintf("https://%s:%d", network.NodeIP(1), apiServerPort) }

// nodeCgroup is the parent of the cgroups of all the node's pods.
func nodeCgroup(name string) string { return cgroupRoot + "/" + name }

const machineIDFile = "/etc/machine-id"

// configFiles are a node's configuration files but for its credentials.
func (c Config) configFiles(index int) []node.File {
	name := nodeName(index)
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n")
	for i, other := range c.nodeNames() {
		fmt.Fprintf(&hosts, "%s %s\n", network.NodeIP(i+1), other)
	}
	text := func(path, content string) node.File {
		return node.File{Path: path, Content: []byte(content), Mode: 0o644}
	}
	return []node.File{
		text("/etc/hostname", name+"\n"),
		text("/etc/hosts", hosts.String()),
		text(machineIDFile, fmt.Sprintf("%032x\n", index)),
		text("/etc/containerd/config.toml", fmt.Sprintf(containerdConfig, runtimeSocket, build.PauseImage, cniDir)),
		text(cniDir+"/testbed.conflist", fmt.Sprintf(cniConfig, network.PodSubnet(index))),
		text(kubernetesDir+"/kubelet.yaml", fmt.Sprintf(kubeletConfig,
			nodeCgroup(name), runtimeSocket, network.NodeIP(index), network.NodeIP(index), kubeletHealth, pkiDir,
			pkiDir, pkiDir, pluginDir, network.NodeIP(1))),
	}
}

// restrict_oom_score_adj: without CAP_SYS_RESOURCE, a process cannot lower its
// score.
const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = "%s"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "%s"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "%s"

[plugins.'io.containerd.nri.v1.nri']
  disable = true
`

// Pods are routed (ptp) and not bridged: what leaves a bridge for another port
// of it meets kube-proxy's rules only where the module br_netfilter is loaded,
// and that would be a change to the machine.
const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "testbed",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: %s
enforceNodeAllocatable: [pods]
oomScoreAdj: 0
containerRuntimeEndpoint: unix://%s
address: %s
healthzBindAddress: %s
healthzPort: %d
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: %s/kubelet.crt
tlsPrivateKeyFile: %s/kubelet.key
volumePluginDir: %s
clusterDomain: cluster.local
clusterDNS: [%s]
resolvConf: ""
failSwapOn: false
maxPods: 200
serializeImagePulls: false
nodeStatusUpdateFrequency: 2s
nodeStatusReportFrequency: 1m
syncFrequency: 10s
volumeStatsAggPeriod: 10s
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}
containerLogMaxSize: 10Mi
`

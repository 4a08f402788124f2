package diagnose

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
	"github.com/quarry-storage/quarry/provisioner/internal/controlplane"
)

const (
	system = "quarry-system"
	// patience is for what has to come; nothing is measured by it.
	patience = time.Minute
)

// site is a real control plane with Quarry's real controller, nodes and agents
// that are objects only, and the plugin as people have it.
type site struct {
	*testing.T
	client.WithWatch
	cp     *controlplane.ControlPlane
	plugin string
}

// TestKubernetes runs the plugin against a real API server as somebody who may
// do what examples/oncall allows and no more.
func TestKubernetes(t *testing.T) {
	cp := controlplane.Start(t, "../../charts/quarry/crds")
	cp.Kubectl(t, "apply", "-f", "../testdata/rbac.yaml", "-f", "../../examples/oncall/clusterrole.yaml")
	cp.Kubectl(t, "create", "clusterrolebinding", "oncall", "--clusterrole=quarry-oncall", "--user=oncall")
	cp.Kubectl(t, "create", "namespace", "shop")
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	scheme, err := provisioner.NewScheme()
	require.NoError(t, err)
	c, err := client.NewWithWatch(cp.Config(controlplane.Admin), client.Options{Scheme: scheme})
	require.NoError(t, err)

	s := &site{T: t, WithWatch: c, cp: cp, plugin: filepath.Join(t.TempDir(), "kubectl-quarry")}
	build := exec.Command("go", "build", "-o", s.plugin, "../../cmd/kubectl-quarry")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, node := range []string{"a", "b"} {
		s.node(node)
	}
	s.pod("controller-1", "a", "controller")

	for _, test := range []struct {
		name string
		run  func(*site)
	}{
		{"status", testStatus},
		{"volumes and pools", testLists},
		{"how full volumes are", testUsage},
		{"stories", testStories},
		{"the shell completes", testCompletion},
		{"the doctor", testDoctor},
		{"what cannot be looked at", testNoLook}, // takes the kinds away
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&site{T: t, WithWatch: s.WithWatch, cp: cp, plugin: s.plugin})
		})
	}
}

// run runs the plugin as the one on call, and returns what it printed and the
// status it ended with.
func (s *site) run(args ...string) (out, errs string, status int) {
	s.Helper()
	return s.runAs("oncall", s.cp.Kubeconfig(), args...)
}

func (s *site) runAs(user, kubeconfig string, args ...string) (out, errs string, status int) {
	s.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(s.Context(), s.plugin, append(args, "--kubeconfig", kubeconfig, "--as", user)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, is := errors.AsType[*exec.ExitError](err); is {
		return stdout.String(), stderr.String(), exit.ExitCode()
	}
	require.NoError(s, err)
	return stdout.String(), stderr.String(), 0
}

func (s *site) make(o client.Object) {
	s.Helper()
	require.NoError(s, s.Create(s.Context(), o))
}

// status writes what change makes of an object's status.
func (s *site) status(o client.Object, change func()) {
	s.Helper()
	require.NoError(s, s.Get(s.Context(), client.ObjectKeyFromObject(o), o))
	change()
	require.NoError(s, s.Status().Update(s.Context(), o))
}

func (s *site) node(name string) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	s.make(node)
	s.status(node, func() {
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	})
	s.pod("agent-"+name, name, "agent")
	p := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: name + ".default"},
		Spec: v1alpha1.PoolSpec{NodeName: name, Pool: "default", UID: "disk-" + name}}
	s.make(p)
	s.status(p, func() { p.Status = pool(name).Status })
}

func (s *site) pod(name, node, component string) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: system, Labels: map[string]string{
			"app.kubernetes.io/name": "quarry", "app.kubernetes.io/component": component,
			"app.kubernetes.io/version": "1"}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: component, Image: "quarry:1"}}},
	}
	s.make(p)
	s.status(p, func() { p.Status = pod(name, node).Status })
}

// statusJSON is what `status -o json` says.
func (s *site) statusJSON() (*Status, int) {
	s.Helper()
	out, errs, status := s.run("status", "-o", "json")
	require.Empty(s, errs)
	said := &Status{}
	require.NoError(s, json.Unmarshal([]byte(out), said), out)
	return said, status
}

// reasons are those of all findings.
func reasons(s *Status) []string {
	var out []string
	for _, f := range s.Findings {
		out = append(out, f.Reason)
	}
	return out
}

func testStatus(s *site) {
	out, errs, status := s.run("status")
	require.Equal(s, 0, status, errs)
	require.Contains(s, out, "All is well.\n")
	require.Contains(s, out, "b.default")
	said, _ := s.statusJSON()
	require.True(s, said.Healthy)
	require.Len(s, said.Nodes, 2)

	// A claim that the controller itself refuses.
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() {
		done <- provisioner.Run(ctx, s.cp.Config(controlplane.Controller), provisioner.Options{Namespace: system,
			NoLeaderElection: true, Registry: prometheus.NewRegistry()})
	}()
	defer func() { cancel(); require.NoError(s, <-done) }()
	wrong := class("wrong", v1alpha1.LocalProvisioner, "WaitForFirstConsumer")
	wrong.Parameters = map[string]string{"backend": "stone"}
	s.make(wrong)
	s.make(class("quarry", v1alpha1.LocalProvisioner, "WaitForFirstConsumer"))
	s.make(s.claim("refused", "wrong", "a"))
	s.make(s.claim("idle", "quarry", ""))
	require.Eventually(s, func() bool {
		said, status := s.statusJSON()
		return status == 1 && slices.Equal(reasons(said), []string{v1alpha1.ReasonInvalidParameter})
	}, patience, 200*time.Millisecond)
	out, _, status = s.run("status")
	require.Equal(s, 1, status)
	require.Contains(s, out, "shop/idle     quarry")
	require.Contains(s, out, "WARNING  claim shop/refused: InvalidParameter\n    StorageClass parameter")
	require.Contains(s, out, "-> parameters cannot be changed: delete the StorageClass and make it again\n")

	// What a disk that is gone does.
	p := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "b.default"}}
	s.status(p, func() {
		meta.SetStatusCondition(&p.Status.Conditions, condition(v1alpha1.ConditionReady, false, "Missing", "no disk"))
	})
	said, status = s.statusJSON()
	require.Equal(s, 1, status)
	require.Equal(s, []string{"Missing", v1alpha1.ReasonInvalidParameter}, reasons(said))

	// It is mended, and the claim goes.
	s.status(p, func() {
		meta.SetStatusCondition(&p.Status.Conditions, condition(v1alpha1.ConditionReady, true, "Ready", ""))
	})
	require.NoError(s, s.Delete(s.Context(), s.claim("refused", "wrong", "a")))
	require.Eventually(s, func() bool {
		said, status := s.statusJSON()
		return status == 0 && len(said.Waiting) == 1
	}, patience, 200*time.Millisecond)
}

func (s *site) claim(name, class, node string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	if node != "" {
		c.Annotations = map[string]string{annSelectedNode: node}
	}
	return c
}

// testNoLook proves that what could not be looked at is never said to be well.
func testNoLook(s *site) {
	_, errs, status := s.runAs("stranger", s.cp.Kubeconfig(), "status")
	require.Equal(s, 2, status)
	require.Contains(s, errs, "forbidden")
	require.Contains(s, errs, "docs/guides/kubectl-quarry.md#rights")

	nowhere := filepath.Join(s.TempDir(), "kubeconfig")
	require.NoError(s, os.WriteFile(nowhere, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`), 0o600))
	_, errs, status = s.runAs("oncall", nowhere, "status")
	require.Equal(s, 2, status)
	require.Contains(s, errs, "refused")

	s.cp.Kubectl(s.T, "delete", "--wait", "-f", "../../charts/quarry/crds")
	_, errs, status = s.run("status")
	require.Equal(s, 2, status)
	require.Contains(s, errs, "Quarry is not installed in this cluster")
	require.Equal(s, []string{"error install-rights", "error installed"}, s.doctor(1))
}

// volume makes a Volume object of a claim that has it, and a PersistentVolume
// that leads to it.
func (s *site) volume(name, node, claim string) *v1alpha1.Volume {
	v := volume(name, node)
	v.CreationTimestamp, v.ResourceVersion = metav1.Time{}, ""
	v.Spec.Published, v.Spec.Enforcement = true, v1alpha1.EnforcementQuota
	v.Spec.Backend, v.Spec.Allocation, v.Spec.VolumeMode = v1alpha1.BackendAuto, v1alpha1.AllocationThick, corev1.PersistentVolumeFilesystem
	v.Spec.Claim.Name, v.Spec.Claim.UID = claim, ""
	s.make(&v)
	want := volume(name, node).Status
	s.status(&v, func() { v.Status = want })

	pv := persistent(v.Labels[v1alpha1.LabelPVName], name, node)
	pv.CreationTimestamp = metav1.Time{}
	pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	pv.Spec.StorageClassName = "quarry"
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: claim}
	s.make(&pv)
	c := s.claim(claim, "quarry", node)
	c.Spec.VolumeName = pv.Name
	s.make(c)
	require.Eventually(s, func() bool {
		return s.Get(s.Context(), client.ObjectKeyFromObject(c), c) == nil && c.Status.Phase == corev1.ClaimBound
	}, patience, 50*time.Millisecond)
	return &v
}

func testLists(s *site) {
	one := s.volume("pvc-one-1", "a", "one")
	s.volume("pvc-two-1", "b", "two")
	s.make(s.user("db-0", "one", "a"))

	out, _, status := s.run("volumes", "--usage=false", "-o", "name")
	require.Equal(s, 0, status)
	require.Equal(s, "volume.quarry.storage/pvc-one-1\nvolume.quarry.storage/pvc-two-1\n", out)
	s.cp.Kubectl(s.T, "get", "volume.quarry.storage/pvc-one-1") // kubectl takes such names
	out, errs, _ := s.run("volumes", "--usage=false", "--pod", "shop/db-0")
	require.Empty(s, errs)
	require.Contains(s, out, "pvc-one-1  a     default  shop/one  1Gi   -     -     -        Ready\n")
	require.NotContains(s, out, "pvc-two-1")
	out, _, _ = s.run("volumes", "--usage=false", "--node", "b", "-o", "json")
	var listed []Volume
	require.NoError(s, json.Unmarshal([]byte(out), &listed))
	require.Len(s, listed, 1)
	require.Equal(s, "pvc-two", listed[0].PersistentVolume)
	_, errs, status = s.run("volumes", "--usage=false", "--wrong")
	require.Equal(s, 0, status)
	require.Equal(s, "There are no such volumes.\n", errs)
	// Without the right to ask kubelets the list is there all the same.
	out, errs, status = s.run("volumes", "--node", "a")
	require.Equal(s, 0, status)
	require.Contains(s, out, "pvc-one-1")
	require.Contains(s, errs, "How full volumes on node a are is not known")

	out, _, _ = s.run("pools", "-o", "name")
	require.Equal(s, "pool.quarry.storage/a.default\npool.quarry.storage/b.default\n", out)
	out, _, _ = s.run("pools", "--node", "b")
	require.Contains(s, out, "b.default  Ready  60Gi       100Gi     40Gi      60Gi     1\n")

	// A watch says what changes, once, and what goes.
	volumes := s.follow("volumes", "--usage=false", "--watch", "--node", "a")
	pools := s.follow("pools", "--watch")
	require.Equal(s, "pvc-one-1", volumes.next())
	require.Equal(s, []string{"a.default", "b.default"}, []string{pools.next(), pools.next()})
	s.status(one, func() {
		meta.SetStatusCondition(&one.Status.Conditions, condition(v1alpha1.ConditionReady, false, "ReadOnly", "oh"))
	})
	require.Equal(s, "pvc-one-1", volumes.next())
	require.Contains(s, volumes.last, "ReadOnly")
	p := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "b.default"}}
	s.status(p, func() { p.Status.Available = new(resource.MustParse("50Gi")) })
	require.Equal(s, "b.default", pools.next())
	require.Contains(s, pools.last, "50Gi")
	s.status(one, func() {
		meta.SetStatusCondition(&one.Status.Conditions, condition(v1alpha1.ConditionReady, true, "Ready", ""))
	})
	volumes.next()
	three := s.volume("pvc-three-1", "a", "three")
	require.Equal(s, "pvc-three-1", volumes.next())
	require.NoError(s, s.Delete(s.Context(), three))
	for !strings.Contains(volumes.last, "Gone") {
		require.Equal(s, "pvc-three-1", volumes.next())
	}
}

// following is a plugin that watches.
type following struct {
	*site
	lines *bufio.Scanner
	last  string
}

func (s *site) follow(args ...string) *following {
	s.Helper()
	cmd := exec.Command(s.plugin, append(args, "--kubeconfig", s.cp.Kubeconfig(), "--as", "oncall")...)
	out, err := cmd.StdoutPipe()
	require.NoError(s, err)
	require.NoError(s, cmd.Start())
	watchdog := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	s.Cleanup(func() {
		watchdog.Stop()
		_ = cmd.Process.Signal(os.Interrupt)
		require.NoError(s, cmd.Wait(), "an interrupted watch ends well")
	})
	f := &following{site: s, lines: bufio.NewScanner(out)}
	require.True(s, f.lines.Scan(), "the head")
	return f
}

// next is the name in the next line.
func (f *following) next() string {
	f.Helper()
	require.True(f, f.lines.Scan(), "a line; the last one was %q", f.last)
	f.last = f.lines.Text()
	name, _, _ := strings.Cut(f.last, " ")
	return name
}

// user is a pod that uses a claim.
func (s *site) user(name, claim, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}},
	}
}

func testStories(s *site) {
	for _, args := range [][]string{{"volume", "pvc-one-1"}, {"claim", "shop/one"}, {"claim", "one", "-n", "shop"}} {
		out, errs, status := s.run(append([]string{"describe"}, args...)...)
		require.Equal(s, 0, status, errs)
		for _, part := range []string{"Nothing is wrong.", "Claim:             shop/one (Bound)", "Pods:              db-0 (Pending, node a)",
			"PersistentVolume:  pvc-one (Bound, policy Retain)", "Volume:            pvc-one-1 (Ready, wanted Present)",
			"On disk:           /volumes/pvc-one-1 on node a; pods get /volumes/pvc-one-1/data",
			"Pool:              a.default (Ready)", "agent Ready: quarry-system/agent-a"} {
			require.Contains(s, out, part, args)
		}
	}
	out, _, status := s.run("describe", "pool", "a.default")
	require.Equal(s, 0, status)
	require.Contains(s, out, "pvc-one-1")
	require.NotContains(s, out, "pvc-two-1")
	out, _, _ = s.run("describe", "claim", "idle", "-n", "shop")
	require.Contains(s, out, "It waits: no pod uses it yet")
	out, _, _ = s.run("describe", "volume", "pvc-two-1", "-o", "json")
	story := &Story{}
	require.NoError(s, json.Unmarshal([]byte(out), story))
	require.Equal(s, "two pvc-two b.default", story.Claim.Name+" "+story.PersistentVolume.Name+" "+story.Pools[0].Name)

	_, errs, status := s.run("describe", "volume", "nothing")
	require.Equal(s, 1, status)
	require.Contains(s, errs, "there is no Volume nothing")
	_, _, status = s.run("describe", "claim", "shop/nothing")
	require.Equal(s, 1, status)
}

// testCompletion runs the plugin under the name that kubectl runs for the shell.
func testCompletion(s *site) {
	completer := filepath.Join(filepath.Dir(s.plugin), "kubectl_complete-quarry")
	require.NoError(s, os.Symlink(s.plugin, completer))
	s.Setenv("KUBECONFIG", s.cp.Kubeconfig())
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"st"}, "status\t"},
		{[]string{"volumes", "--sort", ""}, "\nused\n"},
		{[]string{"describe", "volume", ""}, "pvc-one-1\n"},
		{[]string{"describe", "pool", "a."}, "a.default\n"},
		{[]string{"describe", "claim", ""}, "shop/one\n"},
	} {
		out, err := exec.CommandContext(s.Context(), completer, test.args...).Output()
		require.NoError(s, err)
		require.Contains(s, string(out), test.want, test.args)
	}
}

// testUsage plays the kubelet of a node, behind the API server's proxy.
func testUsage(s *site) {
	address := outward(s)
	summary := statsv1alpha1.Summary{Pods: []statsv1alpha1.PodStats{{VolumeStats: []statsv1alpha1.VolumeStats{{
		FsStats: statsv1alpha1.FsStats{UsedBytes: new(uint64(512 << 20)), CapacityBytes: new(uint64(1 << 30)),
			InodesUsed: new(uint64(5)), Inodes: new(uint64(100))},
		PVCRef: &statsv1alpha1.PVCReference{Namespace: "shop", Name: "one"},
	}}}}}
	kubelet := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stats/summary" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(summary)
	}))
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(s, err)
	kubelet.Listener = listener
	kubelet.StartTLS()
	defer kubelet.Close()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	s.status(node, func() {
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
		node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(listener.Addr().(*net.TCPAddr).Port)
	})

	s.cp.Kubectl(s.T, "create", "clusterrole", "measures", "--verb=get", "--resource=nodes/proxy")
	s.cp.Kubectl(s.T, "create", "clusterrolebinding", "measures", "--clusterrole=measures", "--user=oncall")
	var out, errs string
	require.Eventually(s, func() bool { // until the authorizer knows
		out, errs, _ = s.run("volumes", "--node", "a")
		return errs == ""
	}, patience, 100*time.Millisecond, "%s", &errs)
	require.Contains(s, out, "pvc-one-1  a     default  shop/one  1Gi   512Mi  50%   5%       Ready\n")
	out, _, _ = s.run("describe", "volume", "pvc-one-1")
	require.Contains(s, out, "Used:              512Mi (50%), 5 files (5%)\n")
	// A node that cannot be asked keeps nothing back of the other.
	out, errs, _ = s.run("volumes", "--sort", "used")
	require.Contains(s, out, "512Mi")
	require.Contains(s, out, "pvc-two-1")
	require.Contains(s, errs, "How full volumes on node b are is not known")
}

// outward is an address of this machine that is not its loopback, which the API
// server's proxy does not go to.
func outward(s *site) string {
	s.Helper()
	addresses, err := net.InterfaceAddrs()
	require.NoError(s, err)
	for _, a := range addresses {
		if n, is := a.(*net.IPNet); is && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	s.Skip("needs an address that is not the loopback's")
	return ""
}

// testDoctor installs what the chart has beside the programs, takes some of it
// away, and then all.
func testDoctor(s *site) {
	dir := s.TempDir()
	for _, name := range []string{"rbac-agent.yaml", "rbac-controller.yaml", "admission.yaml"} {
		file := filepath.Join(dir, name)
		require.NoError(s, os.WriteFile(file, []byte(template(s, name)), 0o600))
		s.cp.Kubectl(s.T, "apply", "-f", file)
	}
	labels := func(component string) map[string]string {
		return map[string]string{"app.kubernetes.io/name": "quarry", "app.kubernetes.io/component": component}
	}
	pods := func(component string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels(component)},
			Spec: corev1.PodSpec{ServiceAccountName: "quarry-" + component,
				Containers: []corev1.Container{{Name: component, Image: "quarry:1"}}}}
	}
	daemons := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "quarry-agent", Namespace: system, Labels: labels("agent")},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels("agent")}, Template: pods("agent")},
	}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "quarry-controller", Namespace: system, Labels: labels("controller")},
		Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels("controller")},
			Template: pods("controller")},
	}
	s.make(daemons)
	s.make(deployment)
	driver := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LocalProvisioner},
		Spec: storagev1.CSIDriverSpec{AttachRequired: new(false), StorageCapacity: new(true)}}
	s.make(driver)

	// What is left of the tests before: a class that cannot be read.
	require.Equal(s, []string{"error classes"}, s.doctor(1))
	require.NoError(s, s.Delete(s.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "wrong"}}))
	require.Empty(s, s.doctor(0))
	out, errs, status := s.run("doctor")
	require.Equal(s, 0, status, errs)
	require.Contains(s, out, "ok       agent-rights: quarry-system/quarry-agent has the rights that it needs\n")
	require.Contains(s, out, "All is well.\n")

	// A right, the policy's binding and the driver are taken away.
	s.cp.Kubectl(s.T, "delete", "clusterrolebinding", "quarry-agent")
	s.cp.Kubectl(s.T, "delete", "validatingadmissionpolicybinding", "quarry-agent")
	require.NoError(s, s.Delete(s.Context(), driver))
	require.Eventually(s, func() bool { // until the authorizer knows
		return slices.Equal(s.doctor(1), []string{"error agent-rights", "error admission-policy", "error drivers"})
	}, patience, 200*time.Millisecond)

	// Somebody who may look at little is told so, and not that all is well.
	out, _, status = s.runAs("stranger", s.cp.Kubeconfig(), "doctor")
	require.Equal(s, 2, status, out)
	require.Contains(s, out, "UNKNOWN  nodes: cannot look at Nodes: ")

	require.NoError(s, s.Delete(s.Context(), daemons))
	require.NoError(s, s.Delete(s.Context(), deployment))
	require.Equal(s, []string{"note kinds", "error install-rights", "error installed"}, s.doctor(1))
	out, _, status = s.runAs("admin", s.cp.Kubeconfig(), "doctor", "--as-group", "system:masters")
	require.Equal(s, 1, status)
	require.Contains(s, out, "ok       install-rights: you may install it\n")
}

// doctor is what the doctor finds that is not well, who is to end with a status.
func (s *site) doctor(want int) []string {
	s.Helper()
	out, errs, status := s.run("doctor", "-o", "json")
	require.Empty(s, errs)
	report := &Report{}
	require.NoError(s, json.Unmarshal([]byte(out), report), out)
	require.Equal(s, want, status, out)
	var found []string
	for _, c := range report.Checks {
		if c.Result != ResultOK {
			found = append(found, string(c.Result)+" "+c.Name)
		}
	}
	return found
}

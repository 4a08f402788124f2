package diagnose

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
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
			"app.kubernetes.io/name": "quarry", "app.kubernetes.io/component": component}},
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
}

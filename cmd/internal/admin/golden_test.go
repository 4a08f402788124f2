package admin

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/version"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner"
	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

var update = flag.Bool("update", false, "write testdata instead of comparing with it")

// golden compares what was printed with a file of testdata.
func golden(t *testing.T, name, printed string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(printed), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), printed, file)
}

// onCall is the cluster of testdata/oncall.yaml, at noon.
func onCall(t *testing.T) *diagnose.Cluster {
	t.Helper()
	text, err := os.ReadFile("testdata/oncall.yaml")
	require.NoError(t, err)
	scheme, err := provisioner.NewScheme()
	require.NoError(t, err)
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()

	c := &diagnose.Cluster{
		At:      time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Nodes:   map[string]*corev1.Node{},
		Classes: map[string]*storagev1.StorageClass{},
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		require.NoError(t, err, document)
		switch o := object.(type) {
		case *corev1.Node:
			c.Nodes[o.Name] = o
		case *corev1.Pod:
			switch o.Labels["app.kubernetes.io/component"] {
			case "agent":
				c.Agents = append(c.Agents, *o)
			case "controller":
				c.Controllers = append(c.Controllers, *o)
			default:
				c.Pods = append(c.Pods, *o)
			}
		case *v1alpha1.Pool:
			c.Pools = append(c.Pools, *o)
		case *v1alpha1.Volume:
			c.Volumes = append(c.Volumes, *o)
		case *corev1.PersistentVolume:
			c.PVs = append(c.PVs, *o)
		case *corev1.PersistentVolumeClaim:
			c.Claims = append(c.Claims, *o)
		case *storagev1.StorageClass:
			c.Classes[o.Name] = o
		case *corev1.Event:
			c.Events = append(c.Events, *o)
		default:
			require.Failf(t, "no place for it", "%T", object)
		}
	}
	return c
}

func TestStatusIsPrinted(t *testing.T) {
	status := onCall(t).Status()
	for name, wide := range map[string]bool{"status.txt": false, "status-wide.txt": true} {
		var b bytes.Buffer
		require.NoError(t, printStatus(&b, status, wide, show.Paint{}))
		golden(t, name, b.String())
	}
	for name, format := range map[string]string{"status.json": "json", "status.yaml": "yaml"} {
		golden(t, name, structured(t, format, status))
	}
}

// structured prints something as -o FORMAT does.
func structured(t *testing.T, format string, what any) string {
	t.Helper()
	var (
		o show.Format
		b bytes.Buffer
	)
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.Flags(flags, show.AsJSON, show.YAML)
	require.NoError(t, flags.Parse([]string{"-o", format}))
	printed, err := o.Structured(&b, what)
	require.True(t, printed)
	require.NoError(t, err)
	return b.String()
}

// TestStatusOfMany proves that the screen stays one, and that nothing that is
// wrong is left out of it.
func TestStatusOfMany(t *testing.T) {
	c := onCall(t)
	for i := range 200 {
		node := fmt.Sprintf("m%03d", i)
		c.Nodes[node] = c.Nodes["node1"]
		agent := c.Agents[0].DeepCopy()
		agent.Name, agent.Spec.NodeName = "agent-"+node, node
		c.Agents = append(c.Agents, *agent)
		pool := c.Pools[0].DeepCopy()
		pool.Name, pool.Spec.NodeName = node+".default", node
		pool.Status.Available = pool.Status.Capacity
		c.Pools = append(c.Pools, *pool)
		waits := c.Claims[0].DeepCopy()
		waits.Name = fmt.Sprintf("many-%d", i)
		c.Claims = append(c.Claims, *waits)
	}

	var b bytes.Buffer
	require.NoError(t, printStatus(&b, c.Status(), false, show.Paint{}))
	require.Less(t, strings.Count(b.String(), "\n"), 80)
	for _, wrong := range []string{"node3  NotReady", "node2.fast ", "204 claims", "pvc-2-1"} {
		require.Contains(t, b.String(), wrong)
	}
	b.Reset()
	require.NoError(t, printStatus(&b, c.Status(), true, show.Paint{}))
	require.Contains(t, b.String(), "web/many-199")
}

func TestStatusWhenAllIsWell(t *testing.T) {
	c := onCall(t)
	c.Nodes = map[string]*corev1.Node{"node1": c.Nodes["node1"]}
	c.Agents, c.Pools, c.Volumes, c.Claims = c.Agents[:1], c.Pools[:1], c.Volumes[:1], c.Claims[4:]
	c.Volumes[0].Status.Conditions = c.Volumes[0].Status.Conditions[:1]
	c.Pools[0].Status.Available = c.Pools[0].Status.Capacity
	var b bytes.Buffer
	require.NoError(t, printStatus(&b, c.Status(), false, show.Paint{}))
	golden(t, "status-well.txt", b.String())
}

// TestReport proves with which status a program ends, and that an error is said
// once.
func TestReport(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		said   string
	}{
		{nil, 0, ""},
		{errors.New("no"), 1, "p: no\n"},
		{&exit{status: exitWrong}, 1, ""},
		{fmt.Errorf("status: %w", &exit{status: exitWrong}), 1, ""},
		{noLook(errors.New("no")), 2, "p: no\n"},
	} {
		var b bytes.Buffer
		require.Equal(t, test.status, Report(&b, "p", test.err))
		require.Equal(t, test.said, b.String())
	}
}

// TestWrongFlagsAreNoAnswer proves that a script does not take a mistake for
// "something is wrong".
func TestWrongFlagsAreNoAnswer(t *testing.T) {
	for _, args := range [][]string{
		{"status", "--no-such-flag"}, {"status", "one", "more"}, {"status", "-o", "name"},
		{"status", "--kubeconfig", "/nonexistent"}, {"status", "--agent-selector", "=="},
	} {
		cmd := NewPlugin("test", "")
		cmd.SetArgs(args)
		cmd.SetOut(&bytes.Buffer{})
		err := cmd.ExecuteContext(t.Context())
		require.Error(t, err, args)
		require.Equal(t, exitNoLook, Report(&bytes.Buffer{}, "", err), args)
	}
}

func TestOneLine(t *testing.T) {
	require.Equal(t, "a b?[31mc d", oneLine("a\nb\x1b[31mc\td\n"))
}

func TestVolumesArePrinted(t *testing.T) {
	c := onCall(t)
	var (
		all   []diagnose.Volume
		now   = metav1.NewTime(c.At)
		links = diagnose.NewLinks(c.PVs, []corev1.Pod{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0"},
			Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "db-0"}}}}},
		}})
	)
	for i := range c.Volumes {
		all = append(all, diagnose.VolumeOf(&c.Volumes[i], links, c.At))
	}
	all[0].Usage = &diagnose.Usage{UsedBytes: 48 << 30, CapacityBytes: 64 << 30, UsedInodes: 1000, Inodes: 4000, At: now}
	diagnose.SortVolumes(all, "node")
	for name, wide := range map[string]bool{"volumes.txt": false, "volumes-wide.txt": true} {
		var b bytes.Buffer
		require.NoError(t, printVolumes(&b, all, wide, now, show.Paint{}))
		golden(t, name, b.String())
	}
	golden(t, "volumes.json", structured(t, "json", all))
	golden(t, "volumes.yaml", structured(t, "yaml", all[:1]))

	for text, want := range map[string]string{
		"node=node1": "pvc-1-1 pvc-2-1", "namespace=logs": "pvc-3-1", "pool=default": "pvc-1-1 pvc-2-1 pvc-4-1",
		"pool=node3.default": "pvc-4-1", "class=quarry-csi": "pvc-3-1", "pod=shop/db-0": "pvc-1-1",
		"pod=shop/db-1": "", "wrong=true": "pvc-1-1 pvc-2-1 pvc-3-1",
	} {
		var f volumeFilter
		flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
		f.flags(flags)
		require.NoError(t, flags.Parse([]string{"--" + text}))
		require.NoError(t, f.complete())
		var got []string
		for i := range all {
			if f.accepts(&all[i]) {
				got = append(got, all[i].Name)
			}
		}
		require.Equal(t, want, strings.Join(got, " "), text)
	}
	require.Error(t, (&volumeFilter{pod: "db-0"}).complete())
	require.Error(t, (&volumeFilter{pod: "shop/db-0", namespace: "web"}).complete())
	require.NoError(t, (&volumeFilter{pod: "db-0", namespace: "web"}).complete())
}

func TestPoolsArePrinted(t *testing.T) {
	c := onCall(t)
	c.Pools[0].Labels = map[string]string{"quarry.storage/pool": "default", "disk": "ssd", "a": "b"}
	pools := c.PoolsNow()
	for name, wide := range map[string]bool{"pools.txt": false, "pools-wide.txt": true} {
		var b bytes.Buffer
		require.NoError(t, printPools(&b, pools, wide, metav1.NewTime(c.At), show.Paint{}))
		golden(t, name, b.String())
	}
	golden(t, "pools.json", structured(t, "json", pools))
	golden(t, "pools.yaml", structured(t, "yaml", pools[:1]))
}

// TestColumns proves that what follows a table stays in its columns.
func TestColumns(t *testing.T) {
	var b bytes.Buffer
	c := columns{w: &b}
	for _, row := range [][]string{{"NAME", "STATE"}, {"a", "Ready"}, {"longer", ""}, {"b", "x\ny"}} {
		c.print(row)
	}
	require.Equal(t, "NAME  STATE\na     Ready\nlonger  -\nb       x y\n", b.String())
	said := changesOf{}
	require.True(t, said.isNew("v", []string{"a"}))
	require.False(t, said.isNew("v", []string{"a"}))
	require.True(t, said.isNew("v", []string{"b"}))
}

func TestStoriesArePrinted(t *testing.T) {
	c := onCall(t)
	status := c.Status()
	about := func(names ...string) (out []diagnose.Finding) {
		for _, f := range status.Findings {
			if slices.Contains(names, f.Name) {
				out = append(out, f)
			}
		}
		return out
	}
	claim := c.Claims[0].DeepCopy()
	claim.Namespace, claim.Name, claim.Status.Phase = "shop", "db-1", corev1.ClaimBound
	claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-1"}, Spec: corev1.PodSpec{NodeName: "node1"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	nodes := status.Nodes

	for name, story := range map[string]*diagnose.Story{
		"describe-volume": {At: c.At, Findings: about("pvc-2-1"), Claim: claim, Class: c.Classes["quarry"],
			PersistentVolume: &c.PVs[0], Volumes: c.Volumes[1:2], Pools: c.Pools[:1], Nodes: nodes[:1], Pods: []corev1.Pod{pod},
			Usage: &diagnose.Usage{UsedBytes: 8 << 30, CapacityBytes: 32 << 30, UsedInodes: 12, Inodes: 1200}},
		"describe-pool": {Kind: diagnose.KindPool, At: c.At, Findings: about("node1.default", "pvc-1-1", "pvc-2-1"), Volumes: c.Volumes[:2],
			Pools: c.Pools[:1], Nodes: nodes[:1]},
		"describe-claim": {At: c.At, Findings: about("cache-0"), Waiting: &status.Waiting[0], Claim: &c.Claims[0],
			Class: c.Classes["quarry"], Events: c.Events[:1]},
		"describe-well": {At: c.At, Volumes: c.Volumes[3:4], Pools: c.Pools[2:3], Nodes: nodes[2:3]},
	} {
		var b bytes.Buffer
		require.NoError(t, printStory(&b, story, show.Paint{}))
		golden(t, name+".txt", b.String())
	}
}

func TestReportIsPrinted(t *testing.T) {
	install := &diagnose.Install{
		At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Server: &version.Info{GitVersion: "v1.36.3"},
		Unread:    map[string]error{"Nodes": errors.New("nodes is forbidden")},
		Own:       []diagnose.Right{{Verb: "create", Group: "apps", Resource: "daemonsets", Namespace: "quarry-system"}},
		Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "quarry-system"}},
	}
	report := install.Report()
	var b bytes.Buffer
	require.NoError(t, printReportOf(&b, report, show.Paint{}))
	golden(t, "doctor.txt", b.String())
	golden(t, "doctor.json", structured(t, "json", report))

	for healthy, complete := range map[bool]bool{true: true, false: false} {
		b.Reset()
		require.NoError(t, printReportOf(&b, &diagnose.Report{Healthy: true, Complete: complete}, show.Paint{}))
		require.Equal(t, healthy, strings.Contains(b.String(), "All is well."))
	}
}

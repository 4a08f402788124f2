package admin

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"

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
		cmd := NewPlugin("test")
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

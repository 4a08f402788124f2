package scale_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/test/scale"
	"github.com/quarry-storage/quarry/test/testbed/build"
)

// TestMain is also the processes that a run starts: this very program.
func TestMain(m *testing.M) {
	if child, err := scale.Child(os.Args[1:]); child {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	ctrllog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// TestSmall runs everything of the large run in a small cluster, and looks at
// what does not depend on the machine's speed.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a control plane; not with -short")
	}
	cache, err := build.CacheDir()
	require.NoError(t, err)
	kube, err := filepath.Glob(filepath.Join(cache, "kube-*"))
	require.NoError(t, err)
	if len(kube) == 0 {
		t.Skip("needs the testbed's control plane: run `make test-setup`")
	}
	slices.SortFunc(kube, func(a, b string) int { return builtAt(t, a).Compare(builtAt(t, b)) })
	self, err := os.Executable()
	require.NoError(t, err)
	quarry := filepath.Join(t.TempDir(), "quarry")
	command := exec.Command("go", "build", "-o", quarry, "./cmd/quarry")
	command.Dir = "../.."
	output, err := command.CombinedOutput()
	require.NoError(t, err, string(output))

	ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Minute, fmt.Errorf("not within five minutes"))
	defer cancel()
	const nodes, volumes, burst = 20, 200, 40
	result, err := scale.Run(ctx, scale.Config{
		Nodes: nodes, Volumes: volumes, Rounds: 3, Burst: burst, Rest: 3 * time.Second,
		Quarry: quarry, Kube: kube[len(kube)-1], Self: []string{self}, Dir: t.TempDir(), Log: t.Output(),
	})
	require.NoError(t, err)

	assert.Equal(t, burst, result.Many.Quarry.Count)
	assert.Equal(t, burst, result.Gone.Quarry.Count)
	assert.Positive(t, result.Many.Floor.P50)
	assert.Positive(t, result.AtRest["leader"].Resident)
	assert.Positive(t, result.FailoverSeconds)
	// Nobody works on volumes that nobody asks anything of.
	for name, count := range result.Idle {
		if strings.Contains(name, "volumes") && !strings.HasPrefix(name, "WATCH") && !strings.HasPrefix(name, "LIST") {
			assert.Zero(t, count, "%s while nothing happens", name)
		}
	}
	// A volume's life is written once: one record made, one PersistentVolume
	// made, each deleted once.
	assert.InDelta(t, 1, result.Requests["POST persistentvolumes"], 0.2)
	assert.GreaterOrEqual(t, result.Requests["POST volumes"], 1.0)
}

// builtAt is when a directory of the testbed's cache was made: the newest is
// the one to use.
func builtAt(t *testing.T, dir string) time.Time {
	t.Helper()
	info, err := os.Stat(dir)
	require.NoError(t, err)
	return info.ModTime()
}

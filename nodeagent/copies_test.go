package nodeagent

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// TestACopyIsNotServedWhileTheVolumeIsAway starts an agent while a volume's
// disk is away and another pool has a copy of it. The copy is neither served
// nor deleted, also once the disk is back, until there is only one of the two.
func TestACopyIsNotServedWhileTheVolumeIsAway(t *testing.T) {
	b := newBench(t)
	other := testroot.NewFilesystem(t, "ext4", gib)
	b.want("pvc-1", 32<<20, directory)
	made := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, made.Phase)
	out, err := exec.Command("cp", "-a", filepath.Join(b.pool, "pvc-1"), other).CombinedOutput()
	require.NoError(t, err, "%s", out)
	copied := filepath.Join(other, "pvc-1")

	identity := filepath.Join(b.pool, record.MetaDir, record.PoolFile)
	require.NoError(t, os.Rename(identity, identity+"-away"))
	b.start("")
	c, err := config.Default(b.pool)
	require.NoError(t, err)
	c.Pools[0].Reserve, err = config.ParseReserve("0%") // however full the machine's disk is
	require.NoError(t, err)
	second := c.Pools[0]
	second.Name, second.Path = "second", other
	b.store = store.New(store.Options{Node: "node1", Pools: append(c.Pools, second),
		DeviceDir: filepath.Join(t.TempDir(), "dev"), Log: slog.New(slog.DiscardHandler)})
	b.Agent.pools.askEarly(t.Context())
	b.store.Refresh(t.Context())
	require.NoError(t, b.Agent.pools.identify(t.Context()))
	b.store.Refresh(t.Context())
	found, err := b.store.Find(t.Context(), "pvc-1")
	require.NoError(t, err)
	require.Equal(t, "second", found.Pool)

	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeUnavailable, s.Phase)
	require.Equal(t, v1alpha1.ReasonPoolOffline, reason(s))
	require.Equal(t, made.Path, s.Path)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-1").Phase)
	require.DirExists(t, copied)

	require.NoError(t, os.Rename(identity+"-away", identity))
	b.store.Refresh(t.Context())
	require.Error(t, b.reconcile(t.Context(), "pvc-1"), "both have it")
	require.Equal(t, v1alpha1.ReasonMismatch, reason(b.get("pvc-1").Status))
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
	require.Error(t, b.reconcile(t.Context(), "pvc-1"), "both have it")
	require.Equal(t, v1alpha1.VolumeUnavailable, b.get("pvc-1").Status.Phase)

	require.NoError(t, os.RemoveAll(copied))
	b.store.Refresh(t.Context())
	s = b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.Equal(t, made.Path, s.Path)
}

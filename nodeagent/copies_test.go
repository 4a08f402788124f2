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

// withCopy makes a volume, lays a copy of it on a second pool, which it
// returns, and starts an agent that has both.
func (b *bench) withCopy(oldRecord bool, before func()) (made v1alpha1.VolumeStatus, copied string) {
	b.t.Helper()
	t := b.t
	other := testroot.NewFilesystem(t, "ext4", gib)
	b.want("pvc-1", 32<<20, directory)
	made = b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, made.Phase)
	if oldRecord { // of a version that wrote no pool into it
		file := filepath.Join(b.pool, "pvc-1", record.VolumeFile)
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		rec, err := record.DecodeVolume(data)
		require.NoError(t, err)
		rec.PoolUID = ""
		data, err = record.EncodeVolume(rec)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, data, 0o600))
	}
	out, err := exec.Command("cp", "-a", filepath.Join(b.pool, "pvc-1"), other).CombinedOutput()
	require.NoError(t, err, "%s", out)
	before()
	b.startWith(other)
	return made, filepath.Join(other, "pvc-1")
}

// startWith is start with a second pool at another place.
func (b *bench) startWith(other string) {
	b.t.Helper()
	t := b.t
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
	require.NoError(t, b.noteEarly(t.Context()))
	require.NoError(t, b.Agent.pools.identify(t.Context()))
	b.store.Refresh(t.Context())
}

// TestACopyIsNotServedWhileTheVolumeIsAway starts an agent while a volume's
// disk is away and another pool has a copy of it. The copy is neither served
// nor deleted, also once the disk is back; where the records do not tell which
// is the volume, until there is only one of the two.
func TestACopyIsNotServedWhileTheVolumeIsAway(t *testing.T) {
	for _, oldRecord := range []bool{false, true} {
		b := newBench(t)
		identity := filepath.Join(b.pool, record.MetaDir, record.PoolFile)
		made, copied := b.withCopy(oldRecord, func() { require.NoError(t, os.Rename(identity, identity+"-away")) })
		found, err := b.store.Find(t.Context(), "pvc-1")
		if oldRecord {
			require.NoError(t, err)
			require.Equal(t, "second", found.Pool)
		} else {
			var missing *store.NotFoundError
			require.ErrorAs(t, err, &missing)
			require.Len(t, missing.Unseen, 1)
			_, err = b.store.Activate(t.Context(), "pvc-1") // who asks by id alone, as CSI does
			require.Error(t, err)
		}
		s := b.now("pvc-1")
		require.Equal(t, v1alpha1.VolumeUnavailable, s.Phase)
		require.Equal(t, v1alpha1.ReasonPoolOffline, reason(s))
		require.Equal(t, made.Path, s.Path)
		b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
		require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-1").Phase)
		require.DirExists(t, copied)

		if oldRecord {
			require.NoError(t, os.Rename(identity+"-away", identity))
			b.store.Refresh(t.Context())
			require.Error(t, b.reconcile(t.Context(), "pvc-1"), "both have it")
			require.Equal(t, v1alpha1.ReasonMismatch, reason(b.get("pvc-1").Status))
			b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
			require.Error(t, b.reconcile(t.Context(), "pvc-1"), "both have it")
			require.Equal(t, v1alpha1.VolumeUnavailable, b.get("pvc-1").Status.Phase)
			require.NoError(t, os.RemoveAll(copied))
		} else {
			b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
			require.NoError(t, os.Rename(identity+"-away", identity))
		}
		b.store.Refresh(t.Context())
		s = b.now("pvc-1")
		require.Equal(t, v1alpha1.VolumeReady, s.Phase)
		require.Equal(t, made.Path, s.Path)
		if oldRecord {
			continue
		}
		require.Contains(t, b.store.Pools()[1].Broken, "pvc-1")
		b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
		require.Equal(t, v1alpha1.VolumeDeleted, b.now("pvc-1").Phase)
		require.DirExists(t, copied)
	}
}

// TestAVolumeThatWasMovedWhileNoAgentRan is taken where it is now, for its own
// pool is there without it; not when it is to be deleted, for it may be a copy.
func TestAVolumeThatWasMovedWhileNoAgentRan(t *testing.T) {
	for _, doomed := range []bool{false, true} {
		b := newBench(t)
		_, moved := b.withCopy(false, func() { require.NoError(t, os.RemoveAll(filepath.Join(b.pool, "pvc-1"))) })
		if doomed {
			b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
			require.Error(t, b.reconcile(t.Context(), "pvc-1"))
			require.Equal(t, v1alpha1.ReasonMismatch, reason(b.get("pvc-1").Status))
			require.DirExists(t, moved)
			continue
		}
		s := b.now("pvc-1")
		require.Equal(t, v1alpha1.VolumeReady, s.Phase)
		require.Equal(t, "second", s.Pool)
		require.Equal(t, b.store.Pools()[1].UID, s.PoolUID)
		b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
		require.Equal(t, v1alpha1.VolumeDeleted, b.now("pvc-1").Phase)
		require.NoDirExists(t, moved)
		require.NoError(t, b.store.Drain(t.Context())) // before its disk is unmounted
	}
}

// TestACopyIsTheVolumeWhereTheClusterSaysSo takes the pool of a volume out of
// the configuration: what another one has is a copy, until a person says in the
// Volume object that it is there now.
func TestACopyIsTheVolumeWhereTheClusterSaysSo(t *testing.T) {
	b := newBench(t)
	_, copied := b.withCopy(false, func() {})
	c, err := config.Default(filepath.Dir(copied))
	require.NoError(t, err)
	c.Pools[0].Name = "second"
	b.store = store.New(store.Options{Node: "node1", Pools: c.Pools, DeviceDir: filepath.Join(t.TempDir(), "dev"),
		Log: slog.New(slog.DiscardHandler)})
	b.store.Refresh(t.Context())
	require.Error(t, b.reconcile(t.Context(), "pvc-1"))
	v := b.get("pvc-1")
	require.Equal(t, v1alpha1.VolumeUnavailable, v.Status.Phase)
	require.Equal(t, v1alpha1.ReasonMismatch, reason(v.Status))

	v.Status.PoolUID = b.store.Pools()[0].UID
	require.NoError(t, b.objects.Status().Update(t.Context(), v))
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.Equal(t, "second", s.Pool)
	require.Empty(t, b.store.Pools()[0].Broken)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	require.Equal(t, v1alpha1.VolumeDeleted, b.now("pvc-1").Phase)
	require.NoError(t, b.store.Drain(t.Context())) // before its disk is unmounted
}

package listing

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// poolAt makes a pool at a path, as cluster's, with a volume and another one in
// the trash.
func poolAt(t *testing.T, name, cluster string) config.Pool {
	t.Helper()
	testroot.RequireRoot(t)
	c, err := config.Default(t.TempDir())
	require.NoError(t, err)
	c.Pools[0].Reserve, err = config.ParseReserve("0%") // however full the machine's disk is
	require.NoError(t, err)
	p := c.Pools[0]
	s := store.New(store.Options{Node: "node1", Pools: []config.Pool{p}, DeviceDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler)})
	s.Expect(p.Name, disk.Expectation{MayCreate: true, ClusterID: cluster})
	s.Refresh(t.Context())
	for _, id := range []string{"pvc-1", "pvc-2"} {
		adm, err := s.Admit(t.Context(), store.Request{ID: id, Backend: record.BackendDirectory,
			Enforcement: record.EnforcementNone, SizeBytes: 1 << 20,
			Origin: record.Origin{Node: "node1", ClaimNamespace: "default", ClaimName: id,
				StorageClass: "fast", Parameters: map[string]string{"pool": "default"}}})
		require.NoError(t, err)
		_, err = s.Create(t.Context(), adm[0])
		require.NoError(t, err)
	}
	require.NoError(t, s.Delete(t.Context(), "pvc-2", record.Deletion{OnDelete: "trash",
		RetentionSeconds: 3600, Scrub: "zero"}))
	p.Name = name // as another node's configuration may call it
	return p
}

// TestEveryPoolIsListed reads pools of two clusters and one that is not there:
// each is listed by itself.
func TestEveryPoolIsListed(t *testing.T) {
	mine, foreign := poolAt(t, "fast", "cluster-1"), poolAt(t, "slow", "cluster-2")
	missing := config.Pool{Name: "gone", Path: filepath.Join(t.TempDir(), "no")}
	broken := poolAt(t, "broken", "cluster-1")
	require.NoError(t, os.WriteFile(filepath.Join(broken.Path, record.MetaDir, record.PoolFile),
		[]byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(mine.Path, "pvc-3"), nil, 0o600))

	listed := Read([]config.Pool{missing, mine, broken, foreign}, disk.DeviceDir)
	require.Len(t, listed, 4)
	require.Equal(t, disk.OfflineMissing, listed[0].Reason)
	require.Contains(t, listed[0].Error, missing.Path)
	require.Nil(t, listed[0].Identity)
	require.Equal(t, disk.OfflineUnreadable, listed[2].Reason)
	for i, cluster := range map[int]string{1: "cluster-1", 3: "cluster-2"} {
		l := listed[i]
		require.Empty(t, l.Error)
		require.Equal(t, cluster, l.ClusterID)
		require.Equal(t, l.UID, l.Identity.UID)
		require.Equal(t, "node1", l.Identity.Node)
		require.Equal(t, "default", l.Identity.Name)
		require.Len(t, l.Volumes, 1)
		require.Equal(t, "fast", l.Volumes[0].Origin.StorageClass)
		require.Equal(t, map[string]string{"pool": "default"}, l.Volumes[0].Origin.Parameters)
		require.Equal(t, filepath.Join(l.Path, "pvc-1", record.DataDir), l.Volumes[0].Path)
		require.Len(t, l.Trash, 1)
		require.Equal(t, "pvc-2", l.Trash[0].Volume.ID)
		require.Equal(t, "zero", l.Trash[0].Deletion.Scrub)
		require.WithinDuration(t, time.Now(), l.Trash[0].DeletedAt, time.Hour)
		require.EqualValues(t, 3600, l.Trash[0].RemainingSeconds)
	}
	require.Equal(t, "fast", listed[1].Name)
	require.Equal(t, "slow", listed[3].Name)
	require.Contains(t, listed[1].Broken, "pvc-3")

	// What is printed is read back the same.
	text, err := json.Marshal(listed)
	require.NoError(t, err)
	var again []PoolListing
	require.NoError(t, json.Unmarshal(text, &again))
	second, err := json.Marshal(again)
	require.NoError(t, err)
	require.JSONEq(t, string(text), string(second))
}

// TestNamesAreStable spells out the names that programs know.
func TestNamesAreStable(t *testing.T) {
	text, err := json.Marshal(PoolListing{
		Name: "n", Path: "p", Labels: map[string]string{"l": "l"}, UID: "u", ClusterID: "c",
		Identity: &record.Pool{UID: "u", ClusterID: "c", Node: "node", Name: "was"},
		Volumes:  []VolumeListing{{Volume: record.Volume{ID: "v"}, Path: "vp"}},
		Trash: []TrashListing{{Entry: "e", RemainingSeconds: 1,
			Trash: record.Trash{Deletion: record.Deletion{OnDelete: "trash"}}, Volume: &record.Volume{ID: "t"}}},
		Unfinished: []string{"f"}, Broken: map[string]string{"b": "why"}, Error: "err", Reason: "Missing",
	})
	require.NoError(t, err)
	volume := func(id, more string) string {
		return `{"id":"` + id +
			`","createdAt":"0001-01-01T00:00:00Z","backend":"","enforcement":"","volumeMode":"","sizeBytes":0,"origin":{"deletion":{}}` + more + `}`
	}
	require.JSONEq(t, `{"name":"n","path":"p","labels":{"l":"l"},"uid":"u","clusterID":"c",
		"identity":{"uid":"u","createdAt":"0001-01-01T00:00:00Z","clusterID":"c","node":"node","name":"was"},
		"volumes":[`+volume("v", `,"path":"vp"`)+`],
		"trash":[{"entry":"e","deletedAt":"0001-01-01T00:00:00Z","deletion":{"onDelete":"trash"},"remainingSeconds":1,"volume":`+volume("t", "")+`}],
		"unfinished":["f"],"broken":{"b":"why"},"error":"err","reason":"Missing"}`, string(text))
}

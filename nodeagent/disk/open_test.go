package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// made makes a pool in a directory of its own and returns it with its identity.
func made(t *testing.T, by record.PoolHolder, clusterID string) (*config.Pool, *record.Pool) {
	t.Helper()
	cfg := &config.Pool{Name: "default", Path: t.TempDir()}
	r, identity, err := Open(cfg, &Expectation{MayCreate: true, ClusterID: clusterID, By: by})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	return cfg, identity
}

// TestOpenProvesWhichPoolItIs opens one pool under different expectations.
func TestOpenProvesWhichPoolItIs(t *testing.T) {
	node1 := record.PoolHolder{Node: "node1", MachineID: "m1"}
	cfg, identity := made(t, node1, "ours")
	cases := []struct {
		name   string
		want   Expectation
		reason string
	}{
		{"nobody knows anything", Expectation{}, ""},
		{"it is known", Expectation{UID: identity.UID, ClusterID: "ours", By: node1}, ""},
		{"another pool", Expectation{UID: "another"}, OfflineSwapped},
		{"another cluster", Expectation{ClusterID: "theirs"}, OfflineForeign},
		{"a cluster that may take another one's",
			Expectation{ClusterID: "theirs", TakeOver: "third"},
			OfflineForeign},
		{"another node", Expectation{By: record.PoolHolder{Node: "node2"}}, OfflineInUseElsewhere},
		{"another machine under the node's name",
			Expectation{By: record.PoolHolder{Node: "node1", MachineID: "m2"}},
			OfflineInUseElsewhere},
		{"this node, on a machine that is not known",
			Expectation{By: record.PoolHolder{Node: "node1"}},
			""},
		{"another node that may have it", Expectation{By: record.PoolHolder{Node: "node2"},
			TakeFrom: node1.String()}, ""},
		{"another node that may have what a third one had",
			Expectation{By: record.PoolHolder{Node: "node2"}, TakeFrom: "node3"},
			OfflineInUseElsewhere},
		{"whoever had it", Expectation{By: record.PoolHolder{Node: "node2"}, TakeFrom: Anybody},
			""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, found, err := Open(cfg, &c.want)
			if c.reason != "" {
				offline := &OfflineError{}
				require.ErrorAs(t, err, &offline)
				require.Equal(t, c.reason, offline.Reason)
				require.Equal(t, cfg.Name, offline.Pool)
				return
			}
			require.NoError(t, err)
			require.Equal(t, identity, found, "nothing was written")
			require.Equal(t, identity.UID, r.UID)
			require.NoError(t, r.Close())
		})
	}
}

// TestOpenWithoutPool says why there is none, and makes one only where it may.
func TestOpenWithoutPool(t *testing.T) {
	reason := func(path string, want Expectation) string {
		_, _, err := Open(&config.Pool{Name: "default", Path: path}, &want)
		offline := &OfflineError{}
		require.ErrorAs(t, err, &offline)
		return offline.Reason
	}
	empty := t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))

	require.Equal(t, OfflineMissing,
		reason(filepath.Join(empty, "none"), Expectation{MayCreate: true}))
	require.Equal(t, OfflineMissing, reason(file, Expectation{MayCreate: true}))
	require.Equal(t, OfflineUninitialized, reason(empty, Expectation{}))
	require.Equal(t, OfflineMissing, reason(empty, Expectation{UID: "known", MayCreate: true}),
		"a pool that is known to exist is not made anew")
	entries, err := os.ReadDir(empty)
	require.NoError(t, err)
	require.Empty(t, entries)

	require.NoError(t, os.MkdirAll(filepath.Join(empty, record.MetaDir), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(empty, record.MetaDir, record.PoolFile),
		[]byte("not a pool"), 0o600))
	require.Equal(t, OfflineUnreadable, reason(empty, Expectation{MayCreate: true}))
}

// TestTakeOver makes another cluster's pool this one's: who had it before finds
// it foreign.
func TestTakeOver(t *testing.T) {
	cfg, before := made(t, record.PoolHolder{Node: "node1"}, "theirs")
	by := record.PoolHolder{Node: "node1", MachineID: "m1"}
	r, after, err := Open(cfg, &Expectation{ClusterID: "ours", TakeOver: "theirs", By: by})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Equal(t, before.UID, after.UID)
	require.Equal(t, "ours", after.ClusterID)
	require.Equal(t, by, *after.Holder)

	_, _, err = Open(cfg, &Expectation{ClusterID: "theirs", By: by})
	offline := &OfflineError{}
	require.ErrorAs(t, err, &offline)
	require.Equal(t, OfflineForeign, offline.Reason)
}

// TestInspectChangesNothing reads a pool and what is in it.
func TestInspectChangesNothing(t *testing.T) {
	cfg, identity := made(t, record.PoolHolder{Node: "node1"}, "")
	require.NoError(t, os.MkdirAll(filepath.Join(cfg.Path, "broken-1"), 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(cfg.Path, "lost+found"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(cfg.Path, record.MetaDir, record.TmpDir, "made-1"),
		0o700))
	before, err := os.ReadDir(filepath.Join(cfg.Path, record.MetaDir))
	require.NoError(t, err)

	in, err := Inspect(cfg.Path)
	require.NoError(t, err)
	require.Equal(t, *identity, in.Identity)
	require.Empty(t, in.Volumes)
	require.Equal(t, []string{"made-1"}, in.Unfinished)
	require.Contains(t, in.Broken, "broken-1")
	require.NotContains(t, in.Broken, "lost+found", "no volume can have that name")

	after, err := os.ReadDir(filepath.Join(cfg.Path, record.MetaDir))
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// TestOpenKeepsNothing: a pool's disk can be unmounted once it was opened and
// closed, also where it was refused.
func TestOpenKeepsNothing(t *testing.T) {
	cfg, identity := made(t, record.PoolHolder{Node: "node1"}, "ours")
	empty := &config.Pool{Name: "empty", Path: t.TempDir()}
	opened := func() (n int) {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		for _, e := range entries {
			to, _ := os.Readlink("/proc/self/fd/" + e.Name())
			if strings.HasPrefix(to, cfg.Path) || strings.HasPrefix(to, empty.Path) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		cfg  *config.Pool
		want Expectation
	}{
		{cfg, Expectation{UID: identity.UID}},
		{cfg, Expectation{UID: "another"}},
		{cfg, Expectation{ClusterID: "theirs"}},
		{cfg, Expectation{By: record.PoolHolder{Node: "node2"}}},
		{empty, Expectation{}},
		{empty, Expectation{UID: "known"}},
	} {
		r, _, err := Open(c.cfg, &c.want)
		if err == nil {
			require.Equal(t, 2, opened(), "the pool's directory, and its own")
			require.NoError(t, r.Close())
		}
		require.Zero(t, opened(), "%+v: %v", c.want, err)
	}
	_, err := Inspect(cfg.Path)
	require.NoError(t, err)
	require.Zero(t, opened())
}

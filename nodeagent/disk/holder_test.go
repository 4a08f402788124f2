package disk

import (
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestLockIsOneProcess: the second is told who has the pool, and has it once
// the first let go.
func TestLockIsOneProcess(t *testing.T) {
	dir := t.TempDir()
	cfg := &config.Pool{Name: "default", Path: "/srv/pool"}
	first, err := Lock(cfg, "uid-1", dir, "node1", slog.Default())
	require.NoError(t, err)

	_, err = Lock(cfg, "uid-1", dir, "node1", slog.Default())
	offline := &OfflineError{}
	require.ErrorAs(t, err, &offline)
	require.Equal(t, OfflineInUse, offline.Reason)
	require.ErrorContains(t, err,
		fmt.Sprintf("pid %d, node %q, its path /srv/pool", os.Getpid(), "node1"))

	other, err := Lock(cfg, "uid-2", dir, "node1", slog.Default())
	require.NoError(t, err, "another pool is another's")
	require.NoError(t, other.Close())
	require.NoError(t, first.Close())
	again, err := Lock(cfg, "uid-1", dir, "node1", slog.Default())
	require.NoError(t, err)
	require.NoError(t, again.Close())

	_, err = Lock(cfg, "../uid", dir, "node1", slog.Default())
	require.Error(t, err, "an identity comes from a disk, and is no way out of the directory")
}

// TestSignHolder writes who has a pool, and only where that is news.
func TestSignHolder(t *testing.T) {
	cfg, identity := made(t, record.PoolHolder{Node: "node1"}, "")
	r, _, err := Open(cfg, &Expectation{})
	require.NoError(t, err)
	defer r.Close()

	same, err := SignHolder(r, identity, record.PoolHolder{Node: "node1"})
	require.NoError(t, err)
	require.Same(t, identity, same)
	same, err = SignHolder(r, identity, record.PoolHolder{})
	require.NoError(t, err)
	require.Same(t, identity, same, "who only looks has nothing")

	by := record.PoolHolder{Node: "node2", MachineID: "m2"}
	signed, err := SignHolder(r, identity, by)
	require.NoError(t, err)
	require.Equal(t, by, *signed.Holder)
	in, err := Inspect(cfg.Path)
	require.NoError(t, err)
	require.Equal(t, *signed, in.Identity)
}

package disk

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestFullDiskKeepsWhatWasFound: a disk that was too full to try is not one
// that can do less.
func TestFullDiskKeepsWhatWasFound(t *testing.T) {
	before := Features{Filesystem: "xfs", ProjectQuota: true, Reflink: true, Unreserved: true}
	full := Features{Filesystem: "xfs", Unprobed: true, DirectIO: true, NoQuotaBecause: fullAtProbe}
	full.Keep(&before)
	require.Equal(t, Features{Filesystem: "xfs", ProjectQuota: true, Reflink: true,
		Unreserved: true,
		DirectIO:   true, Unprobed: true}, full)

	tried := Features{Filesystem: "xfs", Unprobed: true, ProjectQuota: true}
	tried.Keep(&Features{Filesystem: "xfs", NoQuotaBecause: "it was off"})
	require.True(t, tried.ProjectQuota, "a quota that could be tried is known")

	another := Features{Filesystem: "ext4", Unprobed: true, NoQuotaBecause: fullAtProbe}
	another.Keep(&before)
	require.False(t, another.ProjectQuota, "another filesystem is another")

	known := Features{Filesystem: "xfs", NoQuotaBecause: "it was switched off"}
	known.Keep(&before)
	require.False(t, known.ProjectQuota)
}

// TestOfflineFor says what an error of its disk makes of a pool.
func TestOfflineFor(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("write: %w", err) }
	swapped := &OfflineError{Pool: "p", Reason: OfflineSwapped, Err: errors.New("another")}
	require.Same(t, swapped, OfflineFor("p", wrap(swapped)))
	require.Equal(t, OfflineReadOnly, OfflineFor("p", wrap(unix.EROFS)).Reason)
	require.Equal(t, OfflineFailed, OfflineFor("p", wrap(unix.EIO)).Reason)

	require.True(t, HasFailed(wrap(unix.EIO)))
	require.True(t, HasFailed(wrap(unix.EROFS)))
	require.False(t, HasFailed(wrap(unix.ENOSPC)), "another disk of this size would be full too")
	require.False(t, HasFailed(nil))
	require.True(t, IsFull(wrap(unix.ENOSPC)))
	require.True(t, IsFull(wrap(unix.EDQUOT)))
	require.False(t, IsFull(wrap(unix.EIO)))
}

// TestNetworkFilesystem is refused before anything is made there, and taken
// where it is configured. Every filesystem of ours stands in for one.
func TestNetworkFilesystem(t *testing.T) {
	cfg := &config.Pool{Name: "default", Path: t.TempDir()}
	testroot.RequireRoot(t)
	require.NoError(t, unix.Mount("tmpfs", cfg.Path, "tmpfs", 0, "size=64m"))
	testroot.UnmountOnCleanup(t, cfg.Path)
	shared[unix.TMPFS_MAGIC] = "nfs"
	defer delete(shared, unix.TMPFS_MAGIC)
	want := &Expectation{MayCreate: true, By: record.PoolHolder{Node: "node1"}}

	_, _, err := Open(cfg, want)
	offline := &OfflineError{}
	require.ErrorAs(t, err, &offline)
	require.Equal(t, OfflineNetworkFilesystem, offline.Reason)
	entries, err := os.ReadDir(cfg.Path)
	require.NoError(t, err)
	require.Empty(t, entries)

	cfg.AllowNetworkFilesystem = true
	r, _, err := Open(cfg, want)
	require.NoError(t, err)
	require.NoError(t, r.Close())
}

package store

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func TestInodesOfANewRecord(t *testing.T) {
	project, none := plan{backend: record.BackendDirectory, quotaKind: record.QuotaProject},
		plan{backend: record.BackendDirectory}
	for _, c := range []struct {
		name   string
		inodes int64
		plan   plan
		want   int64
		bySize bool
	}{
		{"nothing said", 0, project, 65536, true},
		{"a number", 100, project, 100, false},
		{"unlimited", UnlimitedInodes, project, 0, false},
		{"an image's are the filesystem's", 0, plan{backend: record.BackendLoop}, 0, false},
		{"a number for an image", 100, plan{backend: record.BackendLoop}, 100, false},
		{"btrfs charges them as bytes", 0, plan{backend: record.BackendDirectory, quotaKind: record.QuotaBtrfs}, 0,
			false},
		{"nothing holds them", 0, none, 0, false},
	} {
		rec := &record.Volume{SizeBytes: gib}
		setInodes(rec, &Request{Inodes: c.inodes}, c.plan)
		require.Equal(t, c.want, rec.Inodes, c.name)
		require.Equal(t, c.bySize, rec.InodesBySize, c.name)
	}
	// A volume that was made before there was a default keeps what its record
	// says.
	old := &record.Volume{SizeBytes: gib}
	require.Zero(t, backend.InodesAt(old, 2*gib))
	require.True(t, backend.InodesHold(old, 0))
	require.False(t, backend.InodesHold(old, 65536))
	// While it grows both limits are right.
	grows := &record.Volume{SizeBytes: gib, GrowingTo: 2 * gib, Inodes: 65536, InodesBySize: true}
	require.True(t, backend.InodesHold(grows, 65536))
	require.True(t, backend.InodesHold(grows, 131072))
	require.False(t, backend.InodesHold(grows, 65535))
	require.False(t, backend.InodesHold(grows, 131073))
}

// A volume under a project quota cannot take the inodes of its pool's
// filesystem, and has more of them when it has grown.
func TestInodesAreLimitedBySize(t *testing.T) {
	for _, k := range []poolKind{onExt4Prj, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, gib)
			n := newNode(t, path)
			pool, err := os.Open(path)
			require.NoError(t, err)
			defer pool.Close()
			v := n.mustCreate(Request{ID: "a-1", Backend: record.BackendDirectory, SizeBytes: 4 * mib})
			dir, err := os.Open(v.Path)
			require.NoError(t, err)
			defer dir.Close()
			made := tenant.Run(t, tenant.User, dir, "files", "f", "2000")
			require.Contains(t, []error{unix.ENOSPC, unix.EDQUOT}, error(made.Errno))
			require.EqualValues(t, 1024-1, made.Done, "the volume's directory is one")
			v, err = n.store.Grow(t.Context(), v.ID, 64*mib)
			require.NoError(t, err)
			require.EqualValues(t, 16384, v.Inodes)
			limits, _, err := quota.GetLimits(pool, uint32(v.QuotaID))
			require.NoError(t, err)
			require.EqualValues(t, 16384, limits.Inodes)
			require.NoError(t, n.start().Recheck(t.Context(), v.ID))

			free := n.mustCreate(Request{ID: "b-1", Backend: record.BackendDirectory, SizeBytes: 4 * mib,
				Inodes: UnlimitedInodes})
			limits, _, err = quota.GetLimits(pool, uint32(free.QuotaID))
			require.NoError(t, err)
			require.Zero(t, limits.Inodes)
			require.NoError(t, n.store.Recheck(t.Context(), free.ID))
		})
	}
}

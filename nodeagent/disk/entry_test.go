package disk

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestTrashID reads the names of entries of the trash.
func TestTrashID(t *testing.T) {
	for name, want := range map[string]string{
		"pvc-1@1700000000":         "pvc-1",
		"pvc-1@1700000000.freeing": "pvc-1",
		"pvc-1@0":                  "pvc-1",
		"pvc-1":                    "",
		"pvc-1@":                   "",
		"pvc-1@yesterday":          "",
		"pvc-1@1@2":                "",
		".pvc@1":                   "",
		"@1":                       "",
		".freeing":                 "",
	} {
		id, ok := TrashID(name)
		require.Equal(t, want != "", ok, name)
		require.Equal(t, want, id, name)
	}
	require.True(t, IsFreeing("pvc-1@1.freeing"))
	require.False(t, IsFreeing("pvc-1@1"))
}

// TestKeptFor says how long an entry of the trash is kept by what is on its
// disk alone.
func TestKeptFor(t *testing.T) {
	trash := func(onDelete string, retention, elapsed int64) record.Trash {
		return record.Trash{ElapsedSeconds: elapsed,
			Deletion: record.Deletion{OnDelete: onDelete, RetentionSeconds: retention}}
	}
	purged := trash("trash", 60, 0)
	purged.Purge = true
	cases := []struct {
		name  string
		entry string
		note  record.Trash
		want  time.Duration
	}{
		{"all of it is left", "v@1", trash("trash", 60, 0), time.Minute},
		{"some of it passed", "v@1", trash("trash", 60, 45), 15 * time.Second},
		{"it passed", "v@1", trash("trash", 60, 90), 0},
		{"it was not to be kept", "v@1", trash("purge", 60, 0), 0},
		{"it is to be purged", "v@1", purged, 0},
		{"it is being freed", "v@1.freeing", trash("trash", 60, 0), 0},
		{"more than time has", "v@1", trash("trash", math.MaxInt64, 0), Seconds(math.MaxInt64)},
		{"less than none passed", "v@1", trash("trash", 60, -60), time.Minute},
	}
	for _, c := range cases {
		require.Equal(t, c.want, KeptFor(c.entry, &c.note), c.name)
	}
	require.Positive(t, Seconds(math.MaxInt64))
}

// TestReadEntryIsOfItsVolume refuses a record that is another volume's.
func TestReadEntryIsOfItsVolume(t *testing.T) {
	cfg, identity := made(t, record.PoolHolder{}, "")
	r, _, err := Open(cfg, &Expectation{})
	require.NoError(t, err)
	defer r.Close()
	for _, name := range []string{"pvc-1", "pvc-2"} {
		dir, err := r.EnsureDir(name, 0o700)
		require.NoError(t, err)
		require.NoError(t, WriteVolume(dir, &record.Volume{ID: "pvc-1", PoolUID: identity.UID,
			Backend: record.BackendDirectory, VolumeMode: record.ModeFilesystem,
			Enforcement: record.EnforcementNone, SizeBytes: 4096}))
		require.NoError(t, dir.Close())
	}

	rec, err := ReadEntry(r.Dir, "pvc-1", "pvc-1")
	require.NoError(t, err)
	require.NoError(t, CopyOn(r, cfg.Name, rec))
	_, err = ReadEntry(r.Dir, "pvc-2", "pvc-2")
	require.True(t, IsUnreadable(err), "%v", err)

	rec.PoolUID = "another"
	err = CopyOn(r, cfg.Name, rec)
	copied := &CopyError{}
	require.ErrorAs(t, err, &copied)
	require.Equal(t, CopyError{ID: "pvc-1", Pool: cfg.Name, PoolUID: identity.UID, Of: "another"},
		*copied)
	mismatch := &MismatchError{}
	require.ErrorAs(t, err, &mismatch)
}

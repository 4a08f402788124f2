package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestPathOf is what a PersistentVolume points at.
func TestPathOf(t *testing.T) {
	for want, rec := range map[string]record.Volume{
		"/pool/v/data":       {ID: "v", Backend: record.BackendDirectory},
		"/pool/v/mount/data": {ID: "v", Backend: record.BackendLoop},
		"/dev/v":             {ID: "v", Backend: record.BackendLoop, VolumeMode: record.ModeBlock},
	} {
		require.Equal(t, want, PathOf(&rec, "/pool", "/dev"))
	}
}

// TestOldPath tells the link at an adopted volume's old path from what else can
// be there.
func TestOldPath(t *testing.T) {
	cfg, _ := made(t, record.PoolHolder{}, "")
	r, _, err := Open(cfg, &Expectation{})
	require.NoError(t, err)
	defer r.Close()
	rec := &record.Volume{ID: "v", Backend: record.BackendDirectory, AdoptedFrom: "srv/app/data"}
	state := func() (state LinkState) {
		t.Helper()
		require.NoError(t, AtOldPath(r, rec, func(_ *OldPath, found LinkState) error {
			state = found
			return nil
		}))
		return state
	}
	require.Equal(t, LinkTaken, state(), "its directory is not there")
	at := filepath.Join(cfg.Path, rec.AdoptedFrom)
	require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o700))
	require.Equal(t, LinkMissing, state())

	require.NoError(t, os.Symlink(LinkTarget(rec), at))
	require.Equal(t, LinkOurs, state())
	require.NoError(t, os.MkdirAll(filepath.Join(cfg.Path, "v/data"), 0o700))
	there, err := filepath.EvalSymlinks(at)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(cfg.Path, "v/data"), there, "the link leads to the data")

	require.NoError(t, os.Remove(at))
	require.NoError(t, os.Symlink("elsewhere", at))
	require.Equal(t, LinkTaken, state(), "another link")
	require.NoError(t, os.Remove(at))
	require.NoError(t, os.Mkdir(at, 0o700))
	require.Equal(t, LinkTaken, state(), "no link")

	require.NoError(t, os.Rename(filepath.Join(cfg.Path, "srv"), filepath.Join(cfg.Path, "moved")))
	require.NoError(t, os.Symlink("moved", filepath.Join(cfg.Path, "srv")))
	require.Equal(t, LinkTaken, state(), "no link is followed on the way")
}

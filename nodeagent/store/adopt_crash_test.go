package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// adoptionCrashes are the adoptions that differ in the steps they take.
func adoptionCrashes() map[string]struct {
	on   poolKind
	kind string
	make func(t testing.TB, path string)
	with func(*Request)
} {
	type shape = struct {
		on   poolKind
		kind string
		make func(t testing.TB, path string)
		with func(*Request)
	}
	image := func(fstype string, size int64) func(testing.TB, string) {
		return func(t testing.TB, path string) { oldImage(t, path, fstype, size) }
	}
	return map[string]shape{
		"directory without any quota": {onExt4, adoptDirectory, oldDirectory, without},
		"directory on btrfs":          {onBtrfs, adoptDirectory, oldDirectory, without},
		"ext4 project":                {onExt4Prj, adoptDirectory, oldDirectory, nil},
		"xfs project":                 {onXFSPrj, adoptDirectory, oldDirectory, nil},
		"no directory":                {onXFS, adoptDirectoryOrCreate, nil, without},
		"image":                       {onExt4, adoptFile, image("ext4", 32*mib), nil},
		"xfs image on btrfs":          {onBtrfs, adoptFile, image("xfs", 304*mib), thin},
		"raw image":                   {onXFS, adoptFileOrCreate, image("", 8*mib+512), raw},
		"no image":                    {onExt4, adoptFileOrCreate, nil, nil},
	}
}

func forEachAdoptionCrash(t *testing.T, test func(t *testing.T, n *node, r Request, begin func(), old bool)) {
	for name, sh := range adoptionCrashes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, sh.on.make(t, 2*gib))
			r := adoption(n, sh.kind, "Old/pv1", func(r *Request) { r.SizeBytes = 32 * mib })
			if sh.with != nil {
				sh.with(&r)
			}
			require.NoError(t, os.Mkdir(filepath.Dir(r.Adopt.Path), 0o755))
			begin := func() {
				if sh.make != nil {
					sh.make(t, r.Adopt.Path)
				}
			}
			test(t, n, r, begin, sh.make != nil)
		})
	}
}

// wholeAdoption asserts that the data is where it was, untouched, or that the
// volume is there, and returns which.
func wholeAdoption(t *testing.T, n *node, r Request, old bool) bool {
	t.Helper()
	v, err := n.store.Get(r.ID)
	if err == nil {
		require.NoError(t, v.Unavailable)
		require.Empty(t, v.Adopting)
		throughOldPath(t, n, r, v)
		if old {
			require.Equal(t, "kept", marked(t, v))
		}
		if v.QuotaKind != "" {
			checkAssigned(t, v)
		}
		return true
	}
	var st unix.Stat_t
	err = unix.Lstat(r.Adopt.Path, &st)
	if !old {
		require.ErrorIs(t, err, os.ErrNotExist)
		return false
	}
	require.NoError(t, err)
	if !r.Adopt.isFile() {
		require.EqualValues(t, unix.S_IFDIR, st.Mode&unix.S_IFMT)
		text, err := os.ReadFile(filepath.Join(r.Adopt.Path, "mark"))
		require.NoError(t, err)
		require.Equal(t, "kept", string(text))
		return false
	}
	require.EqualValues(t, unix.S_IFREG, st.Mode&unix.S_IFMT)
	return false
}

// TestAdoptionKilledAtEveryStep kills the process before each step of an
// adoption, of the deletion of what was adopted, and of its return from the
// trash. At no step may the data be lost, and nothing may leak.
func TestAdoptionKilledAtEveryStep(t *testing.T) {
	forEachAdoptionCrash(t, func(t *testing.T, n *node, r Request, begin func(), old bool) {
		for _, op := range []string{opCreate, opDelete, opRestore} {
			for step := 1; ; step++ {
				begin()
				if op != opCreate {
					n.mustCreate(r)
				}
				if op == opRestore {
					require.NoError(t, deleteWhenFree(t.Context(), n.store, r.ID, keep(3600)))
				}
				killedBefore := doom{Pools: []string{n.pools[0].Path}, Devices: n.devices, Op: op, Request: r,
					Step: step}.run(t)
				if op == opCreate && old {
					// As a pod that starts now would find it: the data, or
					// nothing; never something else.
					requireData(t, r)
				}
				n.start()
				require.NoError(t, n.store.Drain(t.Context()), "killed before %q", killedBefore)
				require.Empty(t, verify.Live(t.Context(), n.store.View()), "killed before %q", killedBefore)
				if len(n.store.Trash()) > 0 {
					require.NotEqual(t, opCreate, op)
					_, err := n.store.Restore(t.Context(), r.ID)
					require.NoError(t, err)
				}
				there := wholeAdoption(t, n, r, old)
				require.True(t, there || op == opCreate && killedBefore != "", "killed before %q", killedBefore)
				if !there {
					n.mustCreate(r)
					require.True(t, wholeAdoption(t, n, r, old))
				}
				settleQuota(t, n, r)
				clearAll(t, n, r)
				if killedBefore == "" {
					require.Greater(t, step, 1, "no step was taken")
					t.Logf("%s: killed at %d steps", op, step-1)
					break
				}
			}
		}
	})
}

// settleQuota frees the volume and waits until its files are charged to nobody
// any more: xfs gives back what removed files held in the background.
func settleQuota(t *testing.T, n *node, r Request) {
	t.Helper()
	v, err := n.store.Get(r.ID)
	require.NoError(t, err)
	require.NoError(t, deleteWhenFree(t.Context(), n.store, r.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	if v.QuotaKind != record.QuotaProject {
		return
	}
	pool, err := os.Open(n.pools[0].Path)
	require.NoError(t, err)
	defer pool.Close()
	for {
		free, err := quota.Free(pool, uint32(v.QuotaID))
		require.NoError(t, err)
		if free {
			return
		}
	}
}

// requireData asserts that the old path leads to the data, without any help of
// the agent.
func requireData(t *testing.T, r Request) {
	t.Helper()
	if !r.Adopt.isFile() {
		text, err := os.ReadFile(filepath.Join(r.Adopt.Path, "mark"))
		require.NoError(t, err)
		require.Equal(t, "kept", string(text))
		return
	}
	st, err := os.Stat(r.Adopt.Path)
	require.NoError(t, err)
	require.True(t, st.Mode().IsRegular())
}

// TestEveryStepOfAnAdoptionFails lets each step fail once. What is left must be
// the data where it was or a volume that the next call finishes.
func TestEveryStepOfAnAdoptionFails(t *testing.T) {
	forEachAdoptionCrash(t, func(t *testing.T, n *node, r Request, begin func(), old bool) {
		for fail := 1; ; fail++ {
			begin()
			var failed string
			steps, armed := 0, false
			n.start(func(o *Options) {
				o.Fault = func(step string) error {
					if armed {
						if steps++; steps == fail {
							failed = step
							return errors.New("injected")
						}
					}
					return nil
				}
			})
			armed = true
			_, err := n.create(r)
			armed = false
			if err != nil && len(n.ids()) == 0 {
				require.NoError(t, n.store.Drain(t.Context()))
				n.check()
				if old {
					requireData(t, r)
				}
			}
			_, err2 := n.create(r)
			require.NoError(t, err2, "again after %q failed", failed)
			n.check()
			require.True(t, wholeAdoption(t, n, r, old), "after %q failed", failed)
			settleQuota(t, n, r)
			clearAll(t, n, r)
			if failed == "" {
				require.NoError(t, err)
				return
			}
		}
	})
}

// TestAdoptedDataIsNeverSwept puts adopted data where only what was never
// finished belongs. Nothing may clear it away.
func TestAdoptedDataIsNeverSwept(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	r := adoption(n, adoptDirectory, "old", without)
	oldDirectory(t, r.Adopt.Path)
	n.mustCreate(r)
	dir := filepath.Join(n.pools[0].Path, r.ID)
	err := n.store.withVolume(t.Context(), r.ID, func(v *volume, _ *disk.Root, dir *beneath.Dir) error {
		rec := v.rec
		rec.Adopting = record.AdoptionMoving
		return disk.WriteVolume(dir, &rec)
	})
	require.NoError(t, err)
	tmp := filepath.Join(n.pools[0].Path, record.MetaDir, record.TmpDir, r.ID)
	require.NoError(t, os.Rename(dir, tmp))
	n.start()
	require.NoError(t, n.store.Drain(t.Context()))
	require.FileExists(t, filepath.Join(tmp, record.DataDir, "mark"))
	require.NoError(t, os.Rename(tmp, dir))
	n.start()
	v, err := n.store.Get(r.ID)
	require.NoError(t, err)
	require.Empty(t, v.Adopting)
	require.Equal(t, "kept", marked(t, v))
}

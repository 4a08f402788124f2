package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

const (
	adoptDirectory         = string(v1alpha1.AdoptDirectory)
	adoptDirectoryOrCreate = string(v1alpha1.AdoptDirectoryOrCreate)
	adoptFile              = string(v1alpha1.AdoptFile)
	adoptFileOrCreate      = string(v1alpha1.AdoptFileOrCreate)
)

// oldDirectory makes a directory with data in it, as an administrator did
// before there was Quarry.
func oldDirectory(t testing.TB, at string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(at, "member", "wal"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(at, "mark"), []byte("kept"), 0o640))
	require.NoError(t, os.WriteFile(filepath.Join(at, "member", "wal", "0.wal"), make([]byte, 5*mib), 0o600))
	require.NoError(t, os.Symlink("mark", filepath.Join(at, "link")))
	require.NoError(t, os.Chown(at, 1234, 4321))
	require.NoError(t, unix.Chmod(at, 0o2751))
	require.NoError(t, os.Chown(filepath.Join(at, "mark"), 1234, 4321))
	testroot.Run(t, "sync", "-f", at) // what is not written yet takes no blocks
}

// oldImage makes an image with data in it. On btrfs it is made without
// copy-on-write, as volumes' images are.
func oldImage(t testing.TB, at, fstype string, size int64) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
	f, err := os.Create(at)
	require.NoError(t, err)
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, backend.FsNoCOW) // of btrfs only
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	if fstype == "" {
		f, err := os.OpenFile(at, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = fmt.Fprintf(f, "%-64s", "kept")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		return
	}
	testroot.Mkfs(t, fstype, at)
	dir := t.TempDir()
	testroot.Run(t, "mount", "-o", "loop", at, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mark"), []byte("kept"), 0o640))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data", "inner"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data", "inner", "file"), []byte("deep"), 0o600))
	require.NoError(t, os.Symlink("/etc", filepath.Join(dir, "etc")))
	require.NoError(t, os.Chown(dir, 1234, 4321))
	require.NoError(t, unix.Chmod(dir, 0o2751))
	testroot.Run(t, "umount", dir)
	for len(testroot.LoopsOver(t, at)) > 0 { // it detaches itself once nobody looks at it any more
	}
}

// adoption is a request for what is at a path of the first pool.
func adoption(n *node, kind, from string, change ...func(*Request)) Request {
	r := Request{ID: "pvc-1", SizeBytes: 64 * mib, Adopt: &Adoption{Path: filepath.Join(n.pools[0].Path, from),
		Type: kind},
		Origin: record.Origin{ClaimNamespace: "default", ClaimName: "data"}}
	for _, f := range change {
		f(&r)
	}
	return r
}

func without(r *Request) { r.Enforcement = record.EnforcementNone }
func thin(r *Request)    { r.Allocation = record.AllocationThin }
func raw(r *Request)     { r.VolumeMode = record.ModeBlock }

// limits is the enforcement that directories can have on a pool when they are
// adopted.
func limits(k poolKind) func(*Request) {
	if k.quota == record.QuotaProject {
		return func(*Request) {}
	}
	return without
}

// throughOldPath asserts that the old path leads to the volume.
func throughOldPath(t testing.TB, n *node, r Request, v Volume) {
	t.Helper()
	to, err := os.Readlink(r.Adopt.Path)
	require.NoError(t, err)
	require.False(t, filepath.IsAbs(to), to)
	there, err := filepath.EvalSymlinks(r.Adopt.Path)
	require.NoError(t, err)
	pool, err := filepath.EvalSymlinks(n.pools[0].Path)
	require.NoError(t, err)
	name := record.DataDir
	if v.Backend == record.BackendLoop {
		name = record.ImageFile
	}
	require.Equal(t, filepath.Join(pool, v.ID, name), there)
}

// oldThings are what can be adopted.
var oldThings = []struct {
	name string
	kind string
	from string
	make func(t testing.TB, path string) // nil: nothing is there
	with func(*Request)
	here func(poolKind) bool
}{
	{"directory", adoptDirectory, "easemesh-storage", oldDirectory, nil, anywhere},
	{"directory further down", adoptDirectoryOrCreate, "Hand_made/by/pv1", oldDirectory, nil, anywhere},
	{"no directory", adoptDirectoryOrCreate, "new-directory", nil, nil, anywhere},
	{"ext4 image", adoptFile, "disk.img", func(t testing.TB, path string) {
		oldImage(t, path, "ext4", 64*mib)
	}, nil, withoutProject},
	{"thin ext4 image", adoptFileOrCreate, "Images/disk.img", func(t testing.TB, path string) {
		oldImage(t, path, "ext4", 64*mib)
	}, thin, withoutProject},
	{"xfs image", adoptFile, "disk.img", func(t testing.TB, path string) {
		oldImage(t, path, "xfs", 304*mib)
	}, nil, withoutProject},
	{"btrfs image", adoptFile, "disk.img", func(t testing.TB, path string) {
		oldImage(t, path, "btrfs", 256*mib)
	}, nil, withoutProject},
	{"raw image", adoptFile, "disk.raw", func(t testing.TB, path string) {
		oldImage(t, path, "", 16*mib+512)
	}, raw, withoutProject},
	{"no image", adoptFileOrCreate, "disk.img", nil, nil, withoutProject},
	{"no raw image", adoptFileOrCreate, "disk.raw", nil, raw, withoutProject},
}

func forEachOldThing(t *testing.T, test func(t *testing.T, n *node, k poolKind, r Request, old bool)) {
	for _, k := range allPools {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, 2*gib)
			for i, o := range oldThings {
				if !o.here(k) {
					continue
				}
				t.Run(o.name, func(t *testing.T) {
					pool := filepath.Join(path, strconv.Itoa(i)) // each its own, on one filesystem
					require.NoError(t, os.Mkdir(pool, 0o755))
					n := newNode(t, pool)
					r := adoption(n, o.kind, o.from)
					require.NoError(t, os.MkdirAll(filepath.Dir(r.Adopt.Path), 0o755))
					if o.make != nil {
						o.make(t, r.Adopt.Path)
					}
					if !r.Adopt.isFile() {
						limits(k)(&r)
					}
					if o.with != nil {
						o.with(&r)
					}
					n.start() // a directory that is no volume is known as such
					test(t, n, k, r, o.make != nil)
				})
			}
		})
	}
}

// TestAdoption takes in everything that can be adopted, on every kind of pool,
// and leads it through its life.
func TestAdoption(t *testing.T) {
	forEachOldThing(t, func(t *testing.T, n *node, k poolKind, r Request, old bool) {
		raw := r.VolumeMode == record.ModeBlock
		v := n.mustCreate(r)
		require.NoError(t, v.Unavailable)
		require.Empty(t, v.Adopting)
		throughOldPath(t, n, r, v)
		if !old {
			mark(t, v, "kept")
		}
		require.Equal(t, v, n.mustCreate(r), "a second time changes nothing")
		require.Equal(t, "kept", marked(t, v))
		if old && !raw {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(v.Path, &st))
			require.Equal(t, []uint32{1234, 4321, 0o2751}, []uint32{st.Uid, st.Gid, st.Mode & 0o7777},
				"the data's own, not the request's")
		}
		if old && v.Backend == record.BackendLoop && !raw {
			deep, err := os.ReadFile(filepath.Join(v.Path, "data", "inner", "file"))
			require.NoError(t, err)
			require.Equal(t, "deep", string(deep))
			to, err := os.Readlink(filepath.Join(v.Path, "etc"))
			require.NoError(t, err)
			require.Equal(t, "/etc", to)
		}
		if v.Backend == record.BackendLoop {
			image := filepath.Join(n.pools[0].Path, v.ID, record.ImageFile)
			if v.Allocation == record.AllocationThick {
				require.GreaterOrEqual(t, blocks(t, image), v.SizeBytes)
			} else {
				require.Less(t, blocks(t, image), v.SizeBytes)
			}
		}
		if v.QuotaKind == record.QuotaProject {
			checkAssigned(t, v)
			checkAdoptedLimit(t, v)
		}
		if k.quota != "" {
			require.Equal(t, v.Owed(), n.store.Pools()[0].Promised)
		}
		require.Empty(t, verify.Live(t.Context(), n.store.View()))

		n.start()
		got, err := n.store.Get(v.ID)
		require.NoError(t, err)
		require.Equal(t, v, got)
		n.reboot()
		n.start()
		require.Equal(t, "kept", marked(t, v))
		require.Empty(t, verify.Live(t.Context(), n.store.View()))
		if !raw {
			checkInUse(t, n, v)
		}

		require.NoError(t, os.Remove(r.Adopt.Path))
		findings := verify.Live(t.Context(), n.store.View())
		require.Len(t, findings, 1)
		require.Equal(t, verify.SeverityWarning, findings[0].Severity)
		require.NoError(t, verify.Repair(t.Context(), findings))
		throughOldPath(t, n, r, v)

		require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)))
		_, err = os.Lstat(r.Adopt.Path)
		require.ErrorIs(t, err, os.ErrNotExist, "the link goes with the volume")
		require.Empty(t, verify.Live(t.Context(), n.store.View()))
		n.start()
		_, err = n.store.Restore(t.Context(), v.ID)
		require.NoError(t, err)
		throughOldPath(t, n, r, v)
		require.Equal(t, "kept", marked(t, v))

		// What somebody put in its place is theirs.
		require.NoError(t, os.Remove(r.Adopt.Path))
		require.NoError(t, os.Symlink("elsewhere", r.Adopt.Path))
		findings = verify.Live(t.Context(), n.store.View())
		require.Len(t, findings, 1)
		require.Empty(t, findings[0].Repair)
		require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
		to, err := os.Readlink(r.Adopt.Path)
		require.NoError(t, err)
		require.Equal(t, "elsewhere", to)
		require.NoError(t, n.store.Drain(t.Context()))
		require.Zero(t, n.store.Pools()[0].Promised)
	})
}

// checkAssigned asserts that everything in the volume is in its project.
func checkAssigned(t testing.TB, v Volume) {
	t.Helper()
	data, err := os.Open(v.Path)
	require.NoError(t, err)
	defer data.Close()
	report, err := quota.Check(t.Context(), data, uint32(v.QuotaID), new(quota.Cursor), 0)
	require.NoError(t, err)
	require.Empty(t, report.Strays)
}

// checkAdoptedLimit writes until the volume is full.
func checkAdoptedLimit(t testing.TB, v Volume) {
	t.Helper()
	dir, err := os.Open(v.Path)
	require.NoError(t, err)
	defer dir.Close()
	free := tenant.Run(t, tenant.ContainerRoot, dir, "write", "big", strconv.FormatInt(2*v.SizeBytes, 10))
	require.Contains(t, []error{unix.ENOSPC, unix.EDQUOT}, error(free.Errno))
	require.LessOrEqual(t, free.Done, v.SizeBytes)
	tenant.Run(t, tenant.ContainerRoot, dir, "remove", "big")
	require.NoError(t, unix.Syncfs(int(dir.Fd())))
}

// TestAdoptionOfWhatIsInUse takes in a directory that a pod writes to, as
// kubelet mounted it for it.
func TestAdoptionOfWhatIsInUse(t *testing.T) {
	for _, k := range allPools {
		t.Run(k.name, func(t *testing.T) {
			n := newNode(t, k.make(t, 2*gib))
			r := adoption(n, adoptDirectory, "easemesh-storage", limits(k), func(r *Request) { r.SizeBytes = gib })
			oldDirectory(t, r.Adopt.Path)
			for i := range 3000 {
				require.NoError(t, os.WriteFile(filepath.Join(r.Adopt.Path, "member", strconv.Itoa(i)),
					[]byte("x"), 0o600))
			}
			n.start()
			pod := t.TempDir()
			testroot.Mount(t, r.Adopt.Path, pod, "--bind")
			w := newWriter(t, pod)
			w.wrote(100)
			v := n.mustCreate(r)
			w.wrote(100)
			w.stop()
			t.Logf("%d rounds, in %d of them the kernel kept a file out of a directory of the other project",
				w.rounds.Load(), w.keptOut)
			throughOldPath(t, n, r, v)
			require.FileExists(t, filepath.Join(v.Path, "member", "log"))
			if v.QuotaKind != "" {
				checkAssigned(t, v)
			}
			require.Empty(t, verify.Live(t.Context(), n.store.View()))
			inUse(t, n.store.Delete(t.Context(), v.ID, purge), v1alpha1.ReasonMounted)
			require.Equal(t, "kept", marked(t, v))
			throughOldPath(t, n, r, v)
			testroot.Run(t, "umount", pod)
		})
	}
}

// writer is a program that makes, replaces and reads files without end.
type writer struct {
	t       *testing.T
	dir     string
	rounds  atomic.Int64
	keptOut int
	end     chan struct{}
	ended   chan error
}

func newWriter(t *testing.T, dir string) *writer {
	w := &writer{t: t, dir: dir, end: make(chan struct{}), ended: make(chan error, 1)}
	go func() { w.ended <- w.run() }()
	return w
}

func (w *writer) run() error {
	for i := 0; ; i++ {
		select {
		case <-w.end:
			return nil
		default:
		}
		text := strconv.Itoa(i)
		dir := filepath.Join(w.dir, "new", strconv.Itoa(i%50))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, text), []byte(text), 0o600); err != nil {
			return err
		}
		// As databases replace a file: written beside it and renamed.
		tmp, log := filepath.Join(w.dir, "member", "log.tmp"), filepath.Join(w.dir, "member", "log")
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			return err
		}
		if err := os.Rename(tmp, log); errors.Is(err, unix.EXDEV) {
			w.keptOut++
		} else if err != nil {
			return err
		} else if got, err := os.ReadFile(log); err != nil || string(got) != text {
			return fmt.Errorf("read %q, not %q: %w", got, text, err)
		}
		if got, err := os.ReadFile(filepath.Join(w.dir, "mark")); err != nil || string(got) != "kept" {
			return fmt.Errorf("read %q: %w", got, err)
		}
		w.rounds.Add(1)
	}
}

// wrote waits until it went on for so many rounds.
func (w *writer) wrote(more int64) {
	w.t.Helper()
	for from := w.rounds.Load(); w.rounds.Load() < from+more; runtime.Gosched() {
		select {
		case err := <-w.ended:
			require.NoError(w.t, err, "it met an error")
		default:
		}
	}
}

func (w *writer) stop() {
	w.t.Helper()
	close(w.end)
	require.NoError(w.t, <-w.ended)
}

package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// listing is everything below a directory, but for what is below .quarry.
func listing(t *testing.T, top string) (names []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == record.MetaDir {
			return filepath.SkipDir
		}
		to, _ := os.Readlink(path)
		names = append(names, path+" "+d.Type().String()+" "+to)
		return nil
	}))
	return names
}

// TestAdoptionRefuses tries to adopt what must not be.
func TestAdoptionRefuses(t *testing.T) {
	pool := onExt4.make(t, gib)
	n := newNode(t, pool)
	oldDirectory(t, filepath.Join(pool, "Old"))
	require.NoError(t, os.Symlink("Old", filepath.Join(pool, "Link")))
	require.NoError(t, os.Symlink("/etc", filepath.Join(pool, "Etc")))
	require.NoError(t, os.WriteFile(filepath.Join(pool, "File"), []byte("text"), 0o600))
	require.NoError(t, unix.Mkfifo(filepath.Join(pool, "Fifo"), 0o600))
	other := Request{ID: "other", Backend: record.BackendDirectory, Enforcement: record.EnforcementNone, SizeBytes: mib}
	mark(t, n.mustCreate(other), "other's")
	require.NoError(t, os.Mkdir(filepath.Join(pool, "other/data/inner"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(pool, "Mounted/inner/deep"), 0o755))
	testroot.Mount(t, "tmpfs", filepath.Join(pool, "Mounted/inner"), "-t", "tmpfs")
	require.NoError(t, os.MkdirAll(filepath.Join(pool, "Elsewhere/inner"), 0o755))
	hidden := testroot.NewMountNamespace(t, `mount -t tmpfs tmpfs "$1"`, filepath.Join(pool, "Elsewhere/inner"))
	require.NoError(t, os.MkdirAll(filepath.Join(pool, "Nested/.quarry"), 0o755))
	defer func() {
		hidden.Stop()
		require.NoError(t, n.store.Delete(context.Background(), "other", purge))
	}()
	promised := n.store.Pools()[0].Promised
	for _, c := range []struct{ from, kind, words string }{
		{"Nothing", adoptDirectory, "there is nothing at"},
		{"Nothing", adoptFile, "there is nothing at"},
		{"Nowhere/new", adoptDirectoryOrCreate, "there is no directory"},
		{"Link", adoptDirectory, "symbolic link"},
		{"Link", adoptDirectoryOrCreate, "symbolic link"},
		{"Link/member", adoptDirectory, "symbolic link"},
		{"Etc/ssl", adoptDirectory, "symbolic link"},
		{"Old/link", adoptFile, "symbolic link"},
		{"File", adoptDirectory, "not a directory"},
		{"File/x", adoptDirectory, "not a directory"},
		{"Old", adoptFile, "not a regular file"},
		{"Fifo", adoptFile, "not a regular file"},
		{"File", adoptFile, "a volume has at least"},
		{".quarry", adoptDirectory, "own directory"},
		{".quarry/trash", adoptDirectory, "own directory"},
		{"other", adoptDirectory, "a volume or a pool"},
		{"other/data", adoptDirectory, "a volume or a pool"},
		{"other/data/inner", adoptDirectory, "a volume or a pool"},
		{"other/new", adoptDirectoryOrCreate, "a volume or a pool"},
		{"Nested", adoptDirectory, "a volume or a pool"},
		{"Mounted", adoptDirectory, "something is mounted"},
		{"Mounted/inner", adoptDirectory, "mount point"},
		{"Mounted/inner/new", adoptDirectoryOrCreate, "mount point"},
		{"Elsewhere", adoptDirectory, "something is mounted"},
		{"Elsewhere/inner", adoptDirectory, "something is mounted"},
	} {
		r := adoption(n, c.kind, c.from, without)
		before := listing(t, pool)
		_, err := n.create(r)
		requireNotAdoptable(t, err, c.words)
		require.Equal(t, before, listing(t, pool), c.from)

		report, err := CheckAdoption(t.Context(), n.pools, r.Adopt.Path, c.kind, "", record.EnforcementNone)
		require.NoError(t, err)
		require.Len(t, report.Problems, 1, c.from)
		require.Contains(t, report.Problems[0], c.words)
	}
	for _, path := range []string{"Old", pool + "/../Old", pool + "/Old/", pool + "//Old", pool + "/./Old",
		pool + "/Old/../../etc", pool, filepath.Dir(pool), "/", "/etc", pool + "x/Old", ""} {
		_, err := n.create(adoption(n, adoptDirectory, "", without, func(r *Request) { r.Adopt.Path = path }))
		requireNotAdoptable(t, err, "")
	}
	for words, change := range map[string]func(*Request){
		"a directory cannot be a block device": raw,
		"enforcement strict":                   func(r *Request) { r.Enforcement = record.EnforcementStrict },
		"does not enforce":                     func(r *Request) { r.Enforcement = record.EnforcementQuota },
		"needs another name":                   nil,
		"lies in pool": func(r *Request) {
			r.Pool, r.Enforcement = "elsewhere", record.EnforcementNone
		},
	} {
		r := adoption(n, adoptDirectory, "Old")
		if change == nil {
			require.NoError(t, os.Rename(filepath.Join(pool, "Old"), filepath.Join(pool, "old")))
			r = adoption(n, adoptDirectory, "old", without, func(r *Request) { r.ID = "old" })
		} else {
			change(&r)
		}
		_, err := n.create(r)
		requireNotAdoptable(t, err, words)
		if change == nil {
			require.NoError(t, os.Rename(filepath.Join(pool, "old"), filepath.Join(pool, "Old")))
		}
	}
	require.Equal(t, promised, n.store.Pools()[0].Promised)
	require.Equal(t, []string{"other"}, n.ids())
}

func requireNotAdoptable(t *testing.T, err error, words string) {
	t.Helper()
	reason, refused := Reason(err)
	require.True(t, refused, "%v", err)
	require.Equal(t, v1alpha1.ReasonNotAdoptable, reason, "%v", err)
	require.ErrorContains(t, err, words)
}

// TestAdoptionKeepsLinks: a directory with the link of a volume in it stays
// where it is.
func TestAdoptionKeepsLinks(t *testing.T) {
	pool := onExt4.make(t, gib)
	n := newNode(t, pool)
	oldDirectory(t, filepath.Join(pool, "Old/pv1"))
	first := adoption(n, adoptDirectory, "Old/pv1", without)
	v := n.mustCreate(first)
	second := adoption(n, adoptDirectory, "Old", without, func(r *Request) { r.ID = "pvc-2" })
	_, err := n.create(second)
	requireNotAdoptable(t, err, "pvc-1")
	report, err := CheckAdoption(t.Context(), n.pools, second.Adopt.Path, "", "", record.EnforcementNone)
	require.NoError(t, err)
	require.Len(t, report.Problems, 1)
	throughOldPath(t, n, first, v)
	_, err = n.create(adoption(n, adoptDirectory, "Old/pv1", without, func(r *Request) { r.ID = "pvc-2" }))
	requireNotAdoptable(t, err, "symbolic link")

	// The way in is as open as it was: the data's own permissions decide.
	require.NoError(t, os.Chmod(v.Path, 0o755))
	require.NoError(t, os.Chmod(pool, 0o755))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Dir(v.Path), &st))
	require.EqualValues(t, 0o711, st.Mode&0o777)
}

// TestAdoptionRefusesImages tries to adopt images that must not be, or cannot
// be used.
func TestAdoptionRefusesImages(t *testing.T) {
	pool := onXFS.make(t, 2*gib)
	n := newNode(t, pool)
	at := func(name string) string { return filepath.Join(pool, name) }
	refused := func(name, words string, change ...func(*Request)) {
		t.Helper()
		before, err := os.ReadFile(at(name))
		require.NoError(t, err)
		_, err = n.create(adoption(n, adoptFile, name, change...))
		requireNotAdoptable(t, err, words)
		after, err := os.ReadFile(at(name))
		require.NoError(t, err)
		require.True(t, string(before) == string(after), "it was changed")
		require.NoError(t, n.store.Drain(t.Context()))
		n.check()
	}
	require.NoError(t, os.WriteFile(at("blank.img"), make([]byte, 32*mib), 0o600))
	refused("blank.img", "holds no filesystem")
	require.NoError(t, os.WriteFile(at("text.img"), []byte(strings.Repeat("text", mib)), 0o600))
	refused("text.img", "holds no filesystem")

	oldImage(t, at("disk.img"), "ext4", 32*mib)
	refused("disk.img", "the volume is to be xfs", func(r *Request) { r.FSType = "xfs" })
	require.NoError(t, os.Link(at("disk.img"), at("second.img")))
	refused("disk.img", "hard links")
	require.NoError(t, os.Remove(at("second.img")))
	device := testroot.NewLoop(t, at("disk.img"))
	refused("disk.img", device)
	testroot.Run(t, "losetup", "--detach", device)
	f, err := os.OpenFile(at("disk.img"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = n.create(adoption(n, adoptFile, "disk.img"))
	requireNotAdoptable(t, err, "open in another process")
	require.NoError(t, f.Close())

	testroot.Run(t, "cp", "--reflink=always", at("disk.img"), at("copy.img"))
	r := adoption(n, adoptFile, "disk.img")
	v := n.mustCreate(r)
	refused("copy.img", "UUID", func(r *Request) { r.ID = "pvc-2" })
	require.Equal(t, "kept", marked(t, v))
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))

	require.NoError(t, os.Truncate(at("copy.img"), 16*mib))
	refused("copy.img", "cut off")
	require.NoError(t, os.Remove(at("copy.img")))

	// What only a mount can tell.
	for name, spoil := range map[string]string{
		"immutable": `touch "$1/x" && chattr +i "$1/x"`,
		"entry":     `mkdir "$1/.quarry-pvc-1"`,
	} {
		oldImage(t, at("odd.img"), "ext4", 32*mib)
		dir := t.TempDir()
		testroot.Run(t, "mount", "-o", "loop", at("odd.img"), dir)
		testroot.Run(t, "sh", "-c", spoil, "sh", dir)
		testroot.Run(t, "umount", dir)
		for len(testroot.LoopsOver(t, at("odd.img"))) > 0 {
		}
		_, err := n.create(adoption(n, adoptFile, "odd.img"))
		requireNotAdoptable(t, err, name)
		st, err := os.Lstat(at("odd.img"))
		require.NoError(t, err)
		require.True(t, st.Mode().IsRegular(), "it is where it was")
		require.NoError(t, n.store.Drain(t.Context()))
		n.check()
		require.Empty(t, n.ids())
		testroot.Run(t, "mount", "-o", "loop", at("odd.img"), dir)
		require.FileExists(t, filepath.Join(dir, "mark"))
		testroot.Run(t, "umount", dir)
		require.NoError(t, os.Remove(at("odd.img")))
	}
}

// TestAdoptionOfCopyOnWriteImage: on btrfs an image has to be made without
// copy-on-write.
func TestAdoptionOfCopyOnWriteImage(t *testing.T) {
	pool := onBtrfs.make(t, gib)
	n := newNode(t, pool)
	require.NoError(t, os.WriteFile(filepath.Join(pool, "disk.raw"), make([]byte, 8*mib), 0o600))
	_, err := n.create(adoption(n, adoptFile, "disk.raw", raw))
	requireNotAdoptable(t, err, "copy-on-write")
	// A directory has no limit there that would hold, and a subvolume cannot
	// tell what it held before.
	oldDirectory(t, filepath.Join(pool, "Old"))
	_, err = n.create(adoption(n, adoptDirectory, "Old"))
	requireNotAdoptable(t, err, "enforcement none")
	testroot.Run(t, "btrfs", "subvolume", "create", filepath.Join(pool, "Sub"))
	testroot.Run(t, "btrfs", "subvolume", "create", filepath.Join(pool, "Sub", "inner"))
	oldDirectory(t, filepath.Join(pool, "Sub", "inner"))
	_, err = n.create(adoption(n, adoptDirectory, "Sub/inner", without))
	requireNotAdoptable(t, err, "subvolume")
	v := n.mustCreate(adoption(n, adoptDirectory, "Sub", without))
	require.FileExists(t, filepath.Join(v.Path, "inner", "mark"))
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
}

// TestAdoptionNeedsItsRoomOnce: what the data takes of the disk already is not
// asked for a second time.
func TestAdoptionNeedsItsRoomOnce(t *testing.T) {
	for _, k := range []poolKind{onXFS, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			pool := k.make(t, gib)
			n := newNode(t, pool)
			r := adoption(n, adoptFile, "disk.raw", raw)
			if k.quota != "" {
				r = adoption(n, adoptDirectory, "Old", func(r *Request) { r.SizeBytes = 610 * mib })
				require.NoError(t, os.Mkdir(r.Adopt.Path, 0o755))
			}
			available := n.store.Pools()[0].Available
			name := r.Adopt.Path
			if k.quota != "" {
				name = filepath.Join(name, "file")
			}
			f, err := os.Create(name)
			require.NoError(t, err)
			require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, 600*mib))
			require.NoError(t, errors.Join(f.Sync(), f.Close()))
			n.start()
			require.Less(t, n.store.Pools()[0].Available, int64(600*mib))
			v := n.mustCreate(r)
			require.Equal(t, v.Owed(), n.store.Pools()[0].Promised)
			require.InDelta(t, available-v.SizeBytes, n.store.Pools()[0].Available, 16*mib)
			require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
			require.NoError(t, n.store.Drain(t.Context()))

			// And what does not fit is not taken in.
			r.SizeBytes = 2 * gib
			if k.quota != "" {
				oldDirectory(t, r.Adopt.Path)
			} else {
				require.NoError(t, os.WriteFile(r.Adopt.Path, nil, 0o600))
				require.NoError(t, os.Truncate(r.Adopt.Path, 2*gib))
			}
			_, err = n.create(r)
			var full *disk.CapacityError
			require.ErrorAs(t, err, &full)
			require.Zero(t, n.store.Pools()[0].Promised)
		})
	}
}

// TestAdoptionOfTooMuch names both sizes.
func TestAdoptionOfTooMuch(t *testing.T) {
	for _, k := range []poolKind{onExt4Prj, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			n := newNode(t, k.make(t, gib))
			r := adoption(n, adoptDirectory, "Old", func(r *Request) { r.SizeBytes = 4 * mib })
			oldDirectory(t, r.Adopt.Path)
			_, err := n.create(r)
			requireNotAdoptable(t, err, " bytes), more than the 4Mi of the volume")
			// Another name of a file takes no more space.
			require.NoError(t, os.Link(filepath.Join(r.Adopt.Path, "member/wal/0.wal"),
				filepath.Join(r.Adopt.Path, "again")))
			report, err := CheckAdoption(t.Context(), n.pools, r.Adopt.Path, "", "", "")
			require.NoError(t, err)
			require.Empty(t, report.Problems)
			require.Less(t, report.UsedBytes, int64(6*mib))
			r.SizeBytes, r.Inodes = 16*mib, 3
			_, err = n.create(r)
			requireNotAdoptable(t, err, "files and directories")
			testroot.Run(t, "chattr", "+i", filepath.Join(r.Adopt.Path, "mark"))
			r.Inodes = 0
			_, err = n.create(r)
			testroot.Run(t, "chattr", "-i", filepath.Join(r.Adopt.Path, "mark"))
			requireNotAdoptable(t, err, "immutable")
		})
	}
}

// TestCheckAdoption looks without touching.
func TestCheckAdoption(t *testing.T) {
	pool := onExt4.make(t, gib)
	n := newNode(t, pool)
	oldDirectory(t, filepath.Join(pool, "Hand_made/pv1"))
	oldImage(t, filepath.Join(pool, "disk.img"), "ext4", 32*mib)
	testroot.Run(t, "tune2fs", "-L", "precious", filepath.Join(pool, "disk.img"))
	pod := t.TempDir()
	testroot.Mount(t, filepath.Join(pool, "Hand_made/pv1"), pod, "--bind")
	before := listing(t, pool)
	pools := append([]config.Pool{{Name: "outer", Path: filepath.Dir(pool)}}, n.pools...)

	report, err := CheckAdoption(t.Context(), pools, filepath.Join(pool, "Hand_made/pv1"), "", "",
		record.EnforcementNone)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Equal(t, []string{"pool1", FoundDirectory, "../<id>/data", adoptDirectory},
		[]string{report.Pool, report.Found, report.Link, report.Type})
	require.GreaterOrEqual(t, report.UsedBytes, int64(5*mib))
	require.EqualValues(t, 6, report.Files)
	require.Len(t, report.Mounts, 1)
	require.Contains(t, report.Mounts[0], pod)

	report, err = CheckAdoption(t.Context(), pools, filepath.Join(pool, "disk.img"), adoptFile, "", "")
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Equal(t, []string{FoundImage, "<id>/image", "ext4", "precious"}, []string{report.Found, report.Link,
		report.Filesystem, report.Label})
	require.EqualValues(t, 32*mib, report.SizeBytes)

	report, err = CheckAdoption(t.Context(), pools, filepath.Join(pool, "new"), adoptDirectoryOrCreate, "",
		record.EnforcementNone)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Equal(t, FoundNothing, report.Found)

	report, err = CheckAdoption(t.Context(), pools, filepath.Join(pool, "Hand_made/pv1"), "", "", "")
	require.NoError(t, err)
	require.Len(t, report.Problems, 1)
	require.Contains(t, report.Problems[0], "does not enforce")
	require.Equal(t, before, listing(t, pool))
}

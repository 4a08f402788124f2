package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// grow a tree that tries to be hard to remove.
func hostileTree(t testing.TB, root string, fstype string) {
	t.Helper()
	wide := filepath.Join(root, "wide")
	require.NoError(t, os.Mkdir(wide, 0o755))
	for i := range 3000 {
		require.NoError(t, os.Mkdir(filepath.Join(wide, fmt.Sprintf("%d", i)), 0o755))
	}
	d, err := unix.Open(root, unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	for range 10_000 { // deeper than PATH_MAX
		require.NoError(t, unix.Mkdirat(d, "deep", 0o755))
		next, err := unix.Openat(d, "deep", unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		unix.Close(d)
		d = next
	}
	unix.Close(d)
	odd := filepath.Join(root, "odd\n\xff")
	require.NoError(t, os.Mkdir(odd, 0o755))
	require.NoError(t, unix.Mkfifo(filepath.Join(odd, "fifo"), 0o600))
	require.NoError(t, unix.Mknod(filepath.Join(odd, "device"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	require.NoError(t, os.Chdir(odd))
	require.NoError(t, unix.Bind(socket, &unix.SockaddrUnix{Name: "socket"}))
	require.NoError(t, os.Chdir("/"))
	unix.Close(socket)
	for i, attribute := range []string{"+i", "+a"} {
		dir := filepath.Join(root, fmt.Sprintf("locked%d", i))
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "inner"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
		if out, err := exec.Command("chattr", attribute, filepath.Join(dir, "file"), filepath.Join(dir, "inner"),
			dir).CombinedOutput(); err != nil {
			t.Logf("no immutable files are tried, this machine withholds CAP_LINUX_IMMUTABLE: %s", out)
		}
	}
	if fstype == "btrfs" {
		sub := filepath.Join(root, "subvolume")
		testroot.Run(t, "btrfs", "subvolume", "create", sub)
		testroot.Run(t, "btrfs", "subvolume", "create", filepath.Join(sub, "nested"))
		require.NoError(t, os.WriteFile(filepath.Join(sub, "nested", "file"), []byte("x"), 0o600))
		testroot.Run(t, "btrfs", "subvolume", "snapshot", "-r", sub, filepath.Join(root, "frozen"))
	}
}

func TestHostileTreeIsFreed(t *testing.T) {
	for _, k := range []poolKind{onExt4, onXFS, onBtrfs, onExt4Prj, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, 2*gib)
			for _, enforcement := range []string{record.EnforcementQuota, record.EnforcementNone} {
				if enforcement == record.EnforcementQuota && k.quota == "" {
					continue
				}
				n := newNode(t, path)
				before := used(t, path)
				v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, Enforcement: enforcement,
					SizeBytes: 512 * mib})
				hostileTree(t, v.Path, k.fstype)
				require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
				// Interrupted again and again, by the agent's end, it goes on.
				for steps := 1; ; steps *= 3 {
					left := steps
					n.start(func(o *Options) {
						o.Fault = func(step string) error {
							if left--; left == 0 && strings.HasPrefix(step, "free:") {
								return context.Canceled
							}
							return nil
						}
					})
					if n.store.Drain(t.Context()) == nil {
						break
					}
				}
				n.check()
				require.Empty(t, n.store.Trash())
				require.Less(t, used(t, path), before+16*mib)
			}
		})
	}
}

// TestPoolInsideAProject frees volumes of a pool that the administrator has put
// into a project of its own.
func TestPoolInsideAProject(t *testing.T) {
	for _, k := range []poolKind{onExt4Prj, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			path := filepath.Join(k.make(t, gib), "pool")
			require.NoError(t, os.Mkdir(path, 0o755))
			dir, err := os.Open(path)
			require.NoError(t, err)
			defer dir.Close()
			require.NoError(t, quota.SetProject(dir, 77, true))
			n := newNode(t, path)
			for _, enforcement := range []string{record.EnforcementQuota, record.EnforcementNone} {
				v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, Enforcement: enforcement,
					SizeBytes: 16 * mib})
				require.NoError(t, os.MkdirAll(filepath.Join(v.Path, "a/b/c"), 0o755))
				require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
				n.check()
				require.Empty(t, n.store.Trash())
			}
		})
	}
}

// TestManyFiles frees a hundred thousand files; the volume is away at once.
func TestManyFiles(t *testing.T) {
	path := onExt4.make(t, 2*gib)
	n := newNode(t, path)
	v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, Enforcement: record.EnforcementNone,
		SizeBytes: 512 * mib})
	for i := range 100_000 {
		fd, err := unix.Open(filepath.Join(v.Path, fmt.Sprintf("file-%d", i)),
			unix.O_CREAT|unix.O_WRONLY|unix.O_EXCL, 0o600)
		require.NoError(t, err)
		unix.Close(fd)
	}
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoDirExists(t, filepath.Join(path, v.ID))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	changed := n.store.Changed()
	go n.store.Run(ctx)
	<-changed
	require.Empty(t, n.store.Trash())
	_, files := n.store.Freed()
	require.GreaterOrEqual(t, files, int64(100_000))
}

// TestRetention keeps what is in the trash for as long as an agent saw time
// pass, and no longer.
func TestRetention(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	n.mustCreate(small)
	require.NoError(t, n.store.Delete(t.Context(), small.ID, keep(3600)))
	entry := n.store.trash[n.store.pools[0].key(n.store.Trash()[0].Entry)]
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1)
	// An hour passes for the process that watches, then it ends; the next goes
	// on counting where that one noted.
	entry.since = entry.since.Add(-noteRetention)
	entry.trash.Deletion.RetentionSeconds = 2 * 3600
	n.store.noteRetention(t.Context(), n.store.pools[0].books(), time.Now())
	n.start()
	left := n.store.Trash()[0].Remaining
	require.LessOrEqual(t, left, time.Hour)
	require.Greater(t, left, 50*time.Minute)
	entry = n.store.trash[n.store.pools[0].key(n.store.Trash()[0].Entry)]
	entry.since = entry.since.Add(-time.Hour)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Empty(t, n.store.Trash())
	_, err := n.store.Restore(t.Context(), small.ID)
	var notFound *NotFoundError
	require.ErrorAs(t, err, &notFound)
}

// TestPurge frees what is in the trash when it is deleted for good.
func TestPurge(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	n.mustCreate(small)
	require.NoError(t, n.store.Delete(t.Context(), small.ID, keep(3600)))
	require.NoError(t, n.store.Delete(t.Context(), small.ID, purge))
	n.start()
	require.NoError(t, n.store.Drain(t.Context()))
	require.Empty(t, n.store.Trash())
}

// TestScrub looks at the pool's own disk for what a volume held.
func TestScrub(t *testing.T) {
	secret := []byte("the secret of the tenant")
	for _, scrub := range []string{scrubZero, scrubDiscard, "none"} {
		t.Run(scrub, func(t *testing.T) {
			testroot.RequireRoot(t)
			image := testroot.NewImage(t, gib)
			testroot.Mkfs(t, "ext4", image.Name())
			path := t.TempDir()
			testroot.Mount(t, testroot.NewLoop(t, image.Name()), path, "-o", "discard")
			n := newNode(t, path)
			secrets := func() int { return count(t, image, secret) }
			raw := n.mustCreate(Request{ID: "raw", VolumeMode: record.ModeBlock, SizeBytes: 16 * mib})
			dir := n.mustCreate(Request{ID: "dir", Backend: record.BackendDirectory,
				Enforcement: record.EnforcementNone, SizeBytes: 16 * mib})
			for _, name := range []string{raw.Path, filepath.Join(dir.Path, "file")} {
				f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
				require.NoError(t, err)
				_, err = f.Write(bytes.Repeat(append(secret, make([]byte, 4096-len(secret))...), 512))
				require.NoError(t, err)
				require.NoError(t, f.Sync())
				require.NoError(t, f.Close())
			}
			require.Equal(t, 1024, secrets())
			for _, id := range []string{"raw", "dir"} {
				require.NoError(t, n.store.Delete(t.Context(), id, record.Deletion{OnDelete: "purge", Scrub: scrub}))
			}
			require.NoError(t, n.store.Drain(t.Context()))
			testroot.Run(t, "sync", "-f", path)
			if scrub == scrubZero {
				require.Zero(t, secrets())
			}
			if scrub == scrubDiscard {
				testroot.Run(t, "fstrim", path) // online discard is not waited for by the filesystem
				require.Zero(t, secrets())
			}
			// The blocks of an image are never another tenant's to read:
			// unwritten extents read as zeros.
			next := n.mustCreate(Request{ID: "next", VolumeMode: record.ModeBlock, SizeBytes: 900 * mib})
			data, err := os.Open(next.Path)
			require.NoError(t, err)
			defer data.Close()
			require.Zero(t, count(t, data, secret))
			data.Close()
		})
	}
}

func count(t testing.TB, f *os.File, what []byte) (n int) {
	t.Helper()
	size, err := f.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	buf := make([]byte, mib)
	for at := int64(0); at < size; at += int64(len(buf)) {
		got, err := f.ReadAt(buf, at)
		if err != io.EOF {
			require.NoError(t, err)
		}
		n += bytes.Count(buf[:got], what)
	}
	return n
}

// TestFormatsOnce mounts and reads back many times, and sees an image that lost
// its filesystem left alone.
func TestFormatsOnce(t *testing.T) {
	path := onExt4.make(t, 2*gib)
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			n := newNode(t, path)
			v := n.mustCreate(Request{ID: "pvc-1", SizeBytes: sizes[fstype], FSType: fstype})
			for i := range 10 {
				text := fmt.Sprintf("round-%d", i)
				mark(t, v, text)
				n.reboot()
				n.start()
				got, err := n.store.Get(v.ID)
				require.NoError(t, err)
				require.Equal(t, v, got)
				require.Equal(t, text, marked(t, v))
			}
			n.reboot()
			testroot.Wipe(t, filepath.Join(path, v.ID, record.ImageFile))
			n.start()
			got, err := n.store.Get(v.ID)
			require.NoError(t, err)
			var mismatch *disk.MismatchError
			require.ErrorAs(t, got.Unavailable, &mismatch)
			require.NoDirExists(t, v.Path)
			_, err = n.create(Request{ID: "pvc-1", SizeBytes: sizes[fstype], FSType: fstype})
			require.ErrorAs(t, err, &mismatch, "creating it again does not format it either")
			require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
		})
	}
}

// TestForeignFilesystem puts another filesystem into an image, as a tenant of a
// Block volume might, and sees it not mounted.
func TestForeignFilesystem(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	n.mustCreate(Request{ID: "pvc-1", SizeBytes: 32 * mib, FSType: "ext4"})
	raw := n.mustCreate(Request{ID: "raw", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
	testroot.Mkfs(t, "ext4", raw.Path)
	n.reboot()
	images := []string{filepath.Join(path, "pvc-1", record.ImageFile), filepath.Join(path, "raw", record.ImageFile)}
	require.NoError(t, os.Rename(images[0], images[0]+".tmp"))
	require.NoError(t, os.Rename(images[1], images[0]))
	require.NoError(t, os.Rename(images[0]+".tmp", images[1]))
	n.start()
	got, err := n.store.Get("pvc-1")
	require.NoError(t, err)
	require.ErrorContains(t, got.Unavailable, "its image holds ext4")
	require.True(t, contains(verify.Live(t.Context(), n.store.View()), "not mounted"))

	// A record that says the image was handed out raw is believed, whatever the
	// mode says by now.
	dir, err := n.store.pools[0].open()
	require.NoError(t, err)
	defer dir.Close()
	vol, err := dir.OpenDir("pvc-1")
	require.NoError(t, err)
	defer vol.Close()
	rec := got.Volume
	rec.EverRaw = true
	require.NoError(t, disk.WriteVolume(vol, &rec))
	n.start()
	got, err = n.store.Get("pvc-1")
	require.NoError(t, err)
	require.ErrorContains(t, got.Unavailable, "handed out as a block device")
	n.dirty = true
	devices, err := loop.List()
	require.NoError(t, err)
	for _, d := range devices {
		require.False(t, strings.HasPrefix(d.BackingPath, filepath.Join(path, "pvc-1")+"/") && d.Autoclear)
	}
}

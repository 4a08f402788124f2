package store

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func (n *node) look() {
	n.t.Helper()
	require.NoError(n.t, n.store.Look(n.t.Context()))
}

// requireUp asserts that the volume is said to be well, and is.
func (n *node) requireUp(id, text string) {
	n.t.Helper()
	v, err := n.store.Get(id)
	require.NoError(n.t, err)
	require.NoError(n.t, v.Unavailable)
	require.Equal(n.t, text, marked(n.t.(*testing.T), v))
	mark(n.t.(*testing.T), v, text)
}

// requireSick asserts that the volume is said to be unusable, and why.
func (n *node) requireSick(id, reason string) error {
	n.t.Helper()
	v, err := n.store.Get(id)
	require.NoError(n.t, err)
	require.Error(n.t, v.Unavailable)
	got, refused := Reason(v.Unavailable)
	require.False(n.t, refused)
	require.Equal(n.t, reason, got, "%v", v.Unavailable)
	return v.Unavailable
}

// tryNow lets the watcher try again what it would try a while later.
func (n *node) tryNow() {
	n.store.watcher.mu.Lock()
	defer n.store.watcher.mu.Unlock()
	for _, r := range n.store.watcher.repairs {
		r.next = time.Time{}
	}
}

func blockVolume(id string) Request {
	return Request{ID: id, VolumeMode: record.ModeBlock, Allocation: record.AllocationThick, SizeBytes: 16 * mib}
}

func imageVolume(id, fstype string) Request {
	return Request{ID: id, Backend: record.BackendLoop, FSType: fstype, Allocation: record.AllocationThick,
		SizeBytes: sizes[fstype]}
}

// Whoever detaches loop devices never makes a Block volume's path lead to
// another volume.
func TestDetachedBlockVolumeIsNeverAnother(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	a := n.mustCreate(blockVolume("pvc-a"))
	mark(t, a, "a")
	device, err := os.Readlink(a.Path)
	require.NoError(t, err)

	require.NoError(t, exec.Command("losetup", "--detach", device).Run())
	b := n.mustCreate(blockVolume("pvc-b"))
	mark(t, b, "b")
	require.Equal(t, "a", marked(t, a))
	require.Equal(t, "b", marked(t, b))

	n.look()
	n.requireUp("pvc-a", "a")
	require.Equal(t, device, n.deviceOf("pvc-a"))
	require.Equal(t, "0", n.sysfs(device, "loop/autoclear"), "the mark is taken off")
}

func (n *node) deviceOf(id string) string {
	n.t.Helper()
	to, err := os.Readlink(filepath.Join(n.devices, id))
	require.NoError(n.t, err)
	return to
}

func (n *node) sysfs(device, name string) string {
	n.t.Helper()
	content, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), name))
	require.NoError(n.t, err)
	return strings.TrimSpace(string(content))
}

// A link that a process before this one left is kept only where it leads to its
// volume, before anything else is done.
func TestLinksOfTheProcessBefore(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	n.mustCreate(blockVolume("pvc-a"))
	n.mustCreate(blockVolume("pvc-b"))
	stranger := testroot.NewLoop(t, testroot.NewThickImage(t, 16*mib).Name())
	a := n.deviceOf("pvc-a")
	// As it is when a number was given out while nobody kept the device open.
	lead := func(id, to string) {
		link := filepath.Join(n.devices, id)
		require.NoError(t, os.Remove(link))
		require.NoError(t, os.Symlink(to, link))
	}
	lead("pvc-b", stranger)
	require.NoError(t, os.Symlink(a, filepath.Join(n.devices, "pvc-c")))
	require.NoError(t, os.Symlink("/dev/null", filepath.Join(n.devices, "pvc-d")))
	require.NoError(t, os.Symlink(stranger, filepath.Join(n.devices, "pvc-a.new")))

	n.prepare()
	n.store.backends.TakeOverLinks(t.Context())
	entries, err := os.ReadDir(n.devices)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, a, n.deviceOf("pvc-a"))
	n.store.Refresh(t.Context())
	require.NotEqual(t, stranger, n.deviceOf("pvc-b"))
}

// What another process of the machine has, whose pools are others, is not kept
// open here, once it is known that it is nobody's of ours: it could not take
// its volumes away. As long as a disk of ours is away the volume may be on
// that.
func TestLinksOfOthersAreLeft(t *testing.T) {
	ours, theirs := onExt4.make(t, gib), onExt4.make(t, gib)
	away := filepath.Join(onExt4.make(t, gib), "pool")
	n := newNode(t, ours)
	a := n.mustCreate(blockVolume("pvc-a"))
	mark(t, a, "a")
	ourDevice, ok := loop.NumberOf(n.deviceOf("pvc-a"))
	require.True(t, ok)
	other := doom{Pools: []string{theirs}, Devices: n.devices, Op: opBeside, Request: blockVolume("pvc-b")}
	end := other.beside(t)
	device := n.deviceOf("pvc-b")
	theirDevice, ok := loop.NumberOf(device)
	require.True(t, ok)

	n.pools = poolsAt([]string{ours, away})
	n.start()
	require.True(t, loop.IsPinned(theirDevice), "it may be on the disk that is away")
	require.NoError(t, os.Mkdir(away, 0o755))
	n.store.Refresh(t.Context())
	require.Nil(t, n.store.Pools()[1].Offline)
	require.False(t, loop.IsPinned(theirDevice))
	require.Equal(t, device, n.deviceOf("pvc-b"), "the link is theirs")
	require.True(t, loop.IsPinned(ourDevice))
	n.look()
	n.requireUp("pvc-a", "a")

	require.NoError(t, n.store.Delete(t.Context(), "pvc-a", purge), "nor do they keep ours")
	end()
	require.Empty(t, testroot.LoopsOver(t, filepath.Join(theirs, "pvc-b", record.ImageFile)))
	_, err := os.Lstat(filepath.Join(n.devices, "pvc-b"))
	require.ErrorIs(t, err, os.ErrNotExist, "they could delete it")
}

// A link that somebody else bent is put right.
func TestBentLink(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	a := n.mustCreate(blockVolume("pvc-a"))
	mark(t, a, "a")
	device := n.deviceOf("pvc-a")
	require.NoError(t, os.Remove(a.Path))
	n.look()
	require.Equal(t, device, n.deviceOf("pvc-a"))
	require.NoError(t, os.Remove(a.Path))
	require.NoError(t, os.Symlink("/dev/zero", a.Path))
	n.look()
	n.requireUp("pvc-a", "a")
}

// A volume that somebody unmounted, detached or both is brought up again.
func TestTakenAway(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			path := onExt4.make(t, 2*gib)
			n := newNode(t, path)
			v := n.mustCreate(imageVolume("pvc-1", fstype))
			mark(t, v, "mine")
			at := filepath.Dir(v.Path)
			n.look()

			testroot.Run(t, "umount", at)
			n.look()
			n.requireUp("pvc-1", "mine")

			device := testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0]
			testroot.Run(t, "losetup", "--detach", device)
			testroot.Run(t, "umount", at)
			n.look()
			n.requireUp("pvc-1", "mine")

			other := t.TempDir()
			testroot.Run(t, "umount", at)
			testroot.Run(t, "mount", device, other)
			n.look()
			n.requireUp("pvc-1", "mine")
			testroot.Run(t, "umount", other)
			n.look()
			n.requireUp("pvc-1", "mine")
		})
	}
}

// damage makes a filesystem one that cannot be worked with, as the kernel does
// after an error, with an administrator's calls.
type damage struct {
	name, fstype, reason string
	do                   func(t *testing.T, at, device string)
}

func damages() []damage {
	shutdown := func(t *testing.T, at, _ string) { testroot.Run(t, "xfs_io", "-x", "-c", "shutdown", at) }
	readOnly := func(t *testing.T, at, _ string) { testroot.Run(t, "mount", "-o", "remount,ro", at) }
	return []damage{
		{"an error in ext4", "ext4", v1alpha1.ReasonReadOnly, func(t *testing.T, at, device string) {
			trigger := filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error")
			require.NoError(t, os.WriteFile(trigger, []byte("1"), 0))
		}},
		{"ext4 shut down", "ext4", v1alpha1.ReasonShutDown, shutdown},
		{"xfs shut down", "xfs", v1alpha1.ReasonShutDown, shutdown},
		{"ext4 remounted", "ext4", v1alpha1.ReasonReadOnly, readOnly},
		{"xfs remounted", "xfs", v1alpha1.ReasonReadOnly, readOnly},
		{"btrfs remounted", "btrfs", v1alpha1.ReasonReadOnly, readOnly},
		{"the mount alone", "ext4", v1alpha1.ReasonReadOnly, func(t *testing.T, at, _ string) {
			testroot.Run(t, "mount", "-o", "remount,bind,ro", at)
		}},
	}
}

// A filesystem that takes no writes any more is said to be so while somebody
// uses it, and mended when nobody does.
func TestSickFilesystem(t *testing.T) {
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			path := onExt4.make(t, 2*gib)
			n := newNode(t, path)
			v := n.mustCreate(imageVolume("pvc-1", d.fstype))
			mark(t, v, "mine")
			at := filepath.Dir(v.Path)
			device := testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0]
			n.look()

			pod := t.TempDir()
			testroot.Run(t, "mount", "--bind", v.Path, pod)
			d.do(t, at, device)
			n.look()
			require.ErrorContains(t, n.requireSick("pvc-1", d.reason), pod)
			// Also by whoever publishes it.
			_, err := n.store.Activate(t.Context(), "pvc-1")
			require.ErrorContains(t, err, pod)

			testroot.Run(t, "umount", pod)
			n.tryNow()
			n.look()
			n.requireUp("pvc-1", "mine")
		})
	}
}

// Whoever publishes a volume finds its filesystem dead before the watcher does,
// and has it mended.
func TestSickFilesystemIsMendedByActivate(t *testing.T) {
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			path := onExt4.make(t, 2*gib)
			n := newNode(t, path)
			v := n.mustCreate(imageVolume("pvc-1", d.fstype))
			mark(t, v, "mine")
			d.do(t, filepath.Dir(v.Path), testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0])
			_, err := n.store.Activate(t.Context(), "pvc-1")
			require.NoError(t, err)
			n.requireUp("pvc-1", "mine")
		})
	}
}

// A volume can be deleted whatever became of its filesystem.
func TestDeleteSickFilesystem(t *testing.T) {
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			path := onExt4.make(t, 2*gib)
			n := newNode(t, path)
			v := n.mustCreate(imageVolume("pvc-1", d.fstype))
			d.do(t, filepath.Dir(v.Path), testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0])
			require.NoError(t, n.store.Delete(t.Context(), "pvc-1", purge))
			require.NoError(t, n.store.Drain(t.Context()))
			require.NoDirExists(t, filepath.Join(path, "pvc-1"))
		})
	}
}

// A process that has a working directory in a dead filesystem keeps it from
// being mended, and is not hurt.
func TestSickFilesystemHeldByAProcess(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	v := n.mustCreate(imageVolume("pvc-1", "ext4"))
	mark(t, v, "mine")
	dir, err := os.Open(v.Path)
	require.NoError(t, err)
	testroot.Run(t, "mount", "-o", "remount,ro", filepath.Dir(v.Path))
	n.look()
	require.ErrorContains(t, n.requireSick("pvc-1", v1alpha1.ReasonReadOnly), "a process with an open file")
	require.NoError(t, dir.Close())
	n.tryNow()
	n.look()
	n.requireUp("pvc-1", "mine")
}

// What another mount namespace has is not checked beneath it.
func TestSickFilesystemInAnotherNamespace(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	v := n.mustCreate(imageVolume("pvc-1", "ext4"))
	mark(t, v, "mine")
	copied := testroot.NewMountNamespace(t, ":")
	testroot.Run(t, "xfs_io", "-x", "-c", "shutdown", filepath.Dir(v.Path))
	n.look()
	require.ErrorContains(t, n.requireSick("pvc-1", v1alpha1.ReasonShutDown), "in the mount namespace of pid")
	copied.Stop()
	n.tryNow()
	n.look()
	n.requireUp("pvc-1", "mine")
}

// Thin images on a full disk: the kernel ends their filesystems, and they come
// back when there is room.
func TestThinImageOnFullDisk(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			path := onExt4.make(t, 600*mib)
			n := newNode(t, path)
			var err error
			n.pools[0].Overcommit, err = config.ParseOvercommit("4.0")
			require.NoError(t, err)
			n.start()
			r := imageVolume("pvc-1", fstype)
			r.Allocation, r.SizeBytes = record.AllocationThin, 600*mib
			v := n.mustCreate(r)
			mark(t, v, "mine")
			foreign := fill(t, path)
			// The tenant goes on writing until its filesystem gives up.
			tenant, err := os.Create(filepath.Join(v.Path, "data"))
			require.NoError(t, err)
			for at, block := int64(0), make([]byte, mib); at < 400*mib; at += mib {
				block[0]++
				if _, err = tenant.WriteAt(block, at); err == nil {
					err = tenant.Sync()
				}
				if err != nil {
					break
				}
			}
			require.Error(t, err)
			_ = tenant.Close() // a dead filesystem says so here too
			n.look()
			if v, err := n.store.Get("pvc-1"); err == nil && v.Unavailable != nil {
				reason, _ := Reason(v.Unavailable)
				require.Contains(t, []string{v1alpha1.ReasonReadOnly, v1alpha1.ReasonShutDown}, reason)
			}
			require.NoError(t, os.Remove(foreign))
			n.tryNow()
			n.look()
			n.requireUp("pvc-1", "mine")
		})
	}
}

// A frozen filesystem is said not to respond, holds nobody up, and is well as
// soon as it is thawed.
func TestFrozenFilesystem(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			path := onExt4.make(t, 2*gib)
			n := newNode(t, path)
			n.store.backends.Questions.Within = 300 * time.Millisecond
			v := n.mustCreate(imageVolume("pvc-1", fstype))
			mark(t, v, "mine")
			at := filepath.Dir(v.Path)
			testroot.Run(t, "fsfreeze", "--freeze", at)
			thawed := false
			t.Cleanup(func() {
				if !thawed {
					exec.Command("fsfreeze", "--unfreeze", at).Run()
				}
			})
			_, err := n.store.Activate(t.Context(), "pvc-1")
			require.Error(t, err)
			n.requireSick("pvc-1", v1alpha1.ReasonNotResponding)
			n.tryNow()
			n.look() // asks nothing more
			n.requireSick("pvc-1", v1alpha1.ReasonNotResponding)

			testroot.Run(t, "fsfreeze", "--unfreeze", at)
			thawed = true
			require.Eventually(t, func() bool {
				n.look()
				v, err := n.store.Get("pvc-1")
				return err == nil && v.Unavailable == nil
			}, time.Minute, 10*time.Millisecond)
			n.requireUp("pvc-1", "mine")
		})
	}
}

// A freeze that outlived its mount does not hang the next one.
func TestFreezeOutlivesItsMount(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			path := onExt4.make(t, 2*gib)
			n := newNode(t, path)
			v := n.mustCreate(imageVolume("pvc-1", fstype))
			mark(t, v, "mine")
			at := filepath.Dir(v.Path)
			testroot.Run(t, "fsfreeze", "--freeze", at)
			testroot.Run(t, "umount", at)
			n.look()
			n.requireUp("pvc-1", "mine")
		})
	}
}

// The watcher notices by itself, at the change of mounts.
func TestWatch(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(imageVolume("pvc-1", "ext4"))
	mark(t, v, "mine")
	n.look()
	watching := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { watching <- n.store.Watch(ctx) }()
	testroot.Run(t, "umount", filepath.Dir(v.Path))
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(v.Path, "mark"))
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	cancel()
	require.NoError(t, <-watching)
	n.requireUp("pvc-1", "mine")
}

// A limit that was lifted is put back.
func TestLookPutsLimitBack(t *testing.T) {
	n := newNode(t, onBtrfs.make(t, gib))
	v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
	testroot.Run(t, "btrfs", "qgroup", "limit", "none", "1/"+strconv.FormatUint(v.QuotaID, 10), n.pools[0].Path)
	n.look()
	v, err := n.store.Get("pvc-1")
	require.NoError(t, err)
	require.ErrorContains(t, v.NotEnforced, "put back")
	require.NoError(t, n.store.Recheck(t.Context(), "pvc-1"))
}

// A repair that was cut off twice is left to a person, whose hand is noticed.
func TestRepairCutOff(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	v := n.mustCreate(imageVolume("pvc-1", "ext4"))
	mark(t, v, "mine")
	device := testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0]
	note := filepath.Join(path, "pvc-1", record.RepairFile)
	require.NoError(t, os.WriteFile(note, []byte(`{"attempts":1,"began":"2026-01-02T03:04:05Z"}`), 0o600))
	n.start(func(o *Options) {
		o.Fault = func(step string) error {
			if step == "repair" {
				return errors.New("ended here") // as a process that is killed, it leaves the note
			}
			return nil
		}
	})
	damages()[0].do(t, filepath.Dir(v.Path), device)
	n.look()
	n.requireSick("pvc-1", v1alpha1.ReasonReadOnly)

	require.NoError(t, os.WriteFile(note, []byte(`{"attempts":2,"began":"2026-01-02T03:04:05Z"}`), 0o600))
	n.start()
	require.ErrorContains(t, n.requireSick("pvc-1", v1alpha1.ReasonDamaged), note)
	require.FileExists(t, note)

	require.NoError(t, os.Remove(note))
	n.tryNow()
	n.look()
	n.requireUp("pvc-1", "mine")
	require.NoFileExists(t, note)
}

// A container with a copy of the host's mounts keeps a volume from being
// deleted, and the volume is not unmounted to find that out.
func TestPrivateCopyOfTheHostsMounts(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	v := n.mustCreate(imageVolume("pvc-1", "ext4"))
	copied := testroot.NewMountNamespace(t, ":")
	id := func() int {
		mounts, err := mount.MountedBelow(filepath.Dir(v.Path))
		require.NoError(t, err)
		require.Len(t, mounts, 1)
		return mounts[0].ID
	}
	before := id()
	busy := inUse(t, n.store.Delete(t.Context(), "pvc-1", purge), v1alpha1.ReasonMounted)
	require.Contains(t, busy.Error(), "in the mount namespace of pid "+strconv.Itoa(copied.PID))
	require.Equal(t, before, id())
	copied.Stop()
	require.NoError(t, n.store.Delete(t.Context(), "pvc-1", purge))
}

// TestHungDiskHoldsUpNoOthersRepair holds up all who bring volumes of one pool
// up again, as a disk does that hangs: another pool's volume is brought up.
func TestHungDiskHoldsUpNoOthersRepair(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	onPool := func(id, pool string) Volume {
		r := blockVolume(id)
		r.Pool = pool
		return n.mustCreate(r)
	}
	var stuck []Volume
	for i := range repairsAtOnce {
		stuck = append(stuck, onPool("stuck-"+strconv.Itoa(i), "pool1"))
	}
	well := onPool("well-1", "pool2")
	n.look()

	goOn := make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	var waiting atomic.Int32
	n.store.opts.Fault = func(step string) error {
		if step == "attach again" && waiting.Add(1) <= repairsAtOnce {
			<-goOn
		}
		return nil
	}
	for _, v := range stuck {
		require.NoError(t, os.Remove(v.Path))
	}
	require.NoError(t, n.store.lookAtAll(t.Context(), true))
	comesTrue(t, func() bool { return waiting.Load() == repairsAtOnce }, "the first pool's are being brought up")

	isLinked := func(v Volume) bool { _, err := os.Readlink(v.Path); return err == nil }
	require.NoError(t, os.Remove(well.Path))
	require.NoError(t, n.store.lookAtAll(t.Context(), true))
	comesTrue(t, func() bool { return isLinked(well) }, "another pool's does not wait for them")
	for _, v := range stuck {
		require.False(t, isLinked(v))
	}

	release()
	n.store.watcher.running.Wait()
	for _, v := range stuck {
		require.True(t, isLinked(v))
	}
}

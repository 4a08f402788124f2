package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// poolDisk is a pool's disk that can be pulled out and put back.
type poolDisk struct {
	device, at string
}

func newDisk(t *testing.T, fstype string) poolDisk {
	t.Helper()
	testroot.RequireRoot(t)
	d := poolDisk{at: t.TempDir()}
	d.device = testroot.NewLoop(t, testroot.NewImage(t, gib).Name())
	testroot.Mkfs(t, fstype, d.device)
	testroot.UnmountOnCleanup(t, d.at)
	d.in(t)
	return d
}

func (d poolDisk) in(t *testing.T)  { t.Helper(); testroot.Run(t, "mount", d.device, d.at) }
func (d poolDisk) out(t *testing.T) { t.Helper(); testroot.Run(t, "umount", d.at) }

var small = Request{ID: "pvc-1", Backend: record.BackendDirectory, Enforcement: record.EnforcementNone,
	SizeBytes: 16 * mib}

func offline(t *testing.T, n *node, reason string) {
	t.Helper()
	p := n.store.Pools()[0]
	require.NotNil(t, p.Offline)
	require.Equal(t, reason, p.Offline.Reason, "%v", p.Offline)
}

// TestMissingDisk pulls the disk out. Nothing may be served from, or written
// to, what is underneath.
func TestMissingDisk(t *testing.T) {
	d := newDisk(t, "ext4")
	n := newNode(t, d.at)
	v := n.mustCreate(Request{ID: "pvc-1", SizeBytes: 32 * mib, FSType: "ext4"})
	n.mustCreate(Request{ID: "pvc-2", SizeBytes: 16 * mib, VolumeMode: record.ModeBlock})
	mark(t, v, "kept")
	promised := n.store.Pools()[0].Promised

	n.reboot()
	d.out(t)
	n.prepare()
	n.store.Expect("pool1", disk.Expectation{UID: v.PoolUID, MayCreate: true})
	n.store.Refresh(t.Context())
	offline(t, n, disk.OfflineMissing)
	require.NoDirExists(t, filepath.Join(d.at, record.MetaDir), "no pool was made underneath")
	_, err := n.create(Request{ID: "pvc-3", SizeBytes: 32 * mib})
	reason, refused := Reason(err)
	require.Equal(t, v1alpha1.ReasonPoolOffline, reason)
	require.True(t, refused)

	d.in(t)
	n.store.Refresh(t.Context())
	got, err := n.store.Get("pvc-1")
	require.NoError(t, err)
	require.Equal(t, v, got)
	require.Equal(t, "kept", marked(t, v))

	// Pulled out under a running store, with the same store to see it come
	// back. Twice: nothing of the first time may stay.
	for range 2 {
		n.reboot()
		d.out(t)
		_, err = n.store.Activate(t.Context(), "pvc-1")
		var gone *disk.OfflineError
		require.ErrorAs(t, err, &gone, "also before anybody noticed")
		n.store.Refresh(t.Context())
		offline(t, n, disk.OfflineMissing)
		got, err = n.store.Get("pvc-1")
		require.NoError(t, err)
		require.ErrorAs(t, got.Unavailable, &gone)
		_, err = n.create(Request{ID: "pvc-3", SizeBytes: 32 * mib})
		require.ErrorAs(t, err, &gone)
		require.ErrorAs(t, n.store.Delete(t.Context(), "pvc-1", purge), &gone)
		entries, err := os.ReadDir(d.at)
		require.NoError(t, err)
		require.Empty(t, entries)
		d.in(t)
		n.store.Refresh(t.Context())
		require.Equal(t, "kept", marked(t, v))
		require.Equal(t, promised, n.store.Pools()[0].Promised)
		n.check()
	}
}

// TestDiskComesBackWithQuota takes a pool with quotas away and back: its ids
// are its volumes' again.
func TestDiskComesBackWithQuota(t *testing.T) {
	d := newDisk(t, "btrfs")
	onBtrfs.require(t, "simple-quota", kernelBefore(t, 6, 7), "btrfs simple quotas (Linux 6.7)")
	n := newNode(t, d.at)
	v := n.mustCreate(Request{ID: "pvc-1", SizeBytes: 16 * mib})
	require.Equal(t, record.QuotaBtrfs, v.QuotaKind)
	n.mustCreate(Request{ID: "pvc-2", SizeBytes: 16 * mib})
	require.NoError(t, n.store.Delete(t.Context(), "pvc-2", keep(3600)))
	mark(t, v, "kept")
	for range 2 {
		d.out(t)
		n.store.Refresh(t.Context())
		offline(t, n, disk.OfflineMissing)
		d.in(t)
		n.store.Refresh(t.Context())
		require.Empty(t, n.store.Pools()[0].Broken)
		require.Equal(t, "kept", marked(t, v))
		n.check()
	}
	_, err := n.store.Restore(t.Context(), "pvc-2")
	require.NoError(t, err)
	require.NotEqual(t, v.QuotaID, n.mustCreate(Request{ID: "pvc-3", SizeBytes: 16 * mib}).QuotaID)
}

// TestDiskWithLargerBlocks moves a pool to a disk with larger blocks, byte for
// byte: volumes come up with those that they were made with, for a filesystem
// of smaller ones could not be mounted.
func TestDiskWithLargerBlocks(t *testing.T) {
	testroot.RequireRoot(t)
	disk, at := testroot.NewImage(t, 2*gib).Name(), t.TempDir()
	testroot.UnmountOnCleanup(t, at)
	device := testroot.NewLoop(t, disk)
	testroot.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", device)
	testroot.Run(t, "mount", device, at)
	n := newNode(t, at)
	var volumes []Volume
	for _, fstype := range testroot.Filesystems() {
		volumes = append(volumes, n.mustCreate(imageVolume("pvc-"+fstype, fstype)))
	}
	volumes = append(volumes, n.mustCreate(blockVolume("pvc-block")))
	for _, v := range volumes {
		require.EqualValues(t, 512, v.LogicalBlockSize)
		mark(t, v, v.ID)
	}

	n.reboot()
	testroot.Run(t, "umount", at)
	testroot.DetachAll(t, disk)
	testroot.Run(t, "mount", testroot.NewLoop(t, disk, "--sector-size", "4096"), at)
	n.start()
	for _, v := range volumes {
		n.requireUp(v.ID, v.ID)
		image := filepath.Join(at, v.ID, record.ImageFile)
		require.Equal(t, "512", n.sysfs(testroot.LoopsOver(t, image)[0], "queue/logical_block_size"))
	}
}

// TestSwappedDisk puts another pool's disk in.
func TestSwappedDisk(t *testing.T) {
	d, other := newDisk(t, "ext4"), newDisk(t, "ext4")
	foreign := newNode(t, other.at)
	foreign.mustCreate(Request{ID: "pvc-9", Backend: record.BackendDirectory, Enforcement: record.EnforcementNone,
		SizeBytes: 16 * mib})
	foreign.dirty = true // its disk will be elsewhere
	n := newNode(t, d.at)
	v := n.mustCreate(small)
	mark(t, v, "kept")

	d.out(t)
	other.out(t)
	testroot.Run(t, "mount", other.device, d.at)
	n.store.Refresh(t.Context())
	offline(t, n, disk.OfflineSwapped)
	require.Empty(t, n.store.Pools()[0].Broken)
	_, err := n.create(Request{ID: "pvc-2", SizeBytes: 16 * mib, FSType: "ext4"})
	var gone *disk.OfflineError
	require.ErrorAs(t, err, &gone)
	require.True(t, contains(verify.Live(t.Context(), n.store.View()), "holds pool"))

	d.out(t)
	d.in(t)
	n.store.Refresh(t.Context())
	require.Equal(t, "kept", marked(t, v))
}

// TestForeignCluster finds a disk of another cluster.
func TestForeignCluster(t *testing.T) {
	testroot.RequireRoot(t)
	path := t.TempDir()
	n := newNode(t)
	n.pools = poolsAt([]string{path})
	n.prepare()
	n.store.Expect("pool1", disk.Expectation{MayCreate: true, ClusterID: "cluster-a"})
	n.store.Refresh(t.Context())
	require.Nil(t, n.store.Pools()[0].Offline)
	n.prepare()
	n.store.Expect("pool1", disk.Expectation{MayCreate: true, ClusterID: "cluster-b"})
	n.store.Refresh(t.Context())
	offline(t, n, disk.OfflineForeign)
	n.prepare()
	n.store.Expect("pool1", disk.Expectation{ClusterID: "cluster-a"})
	n.store.Refresh(t.Context())
	require.Nil(t, n.store.Pools()[0].Offline)
}

// TestTakeOver makes a disk of another cluster this one's, when that cluster is
// named and no other.
func TestTakeOver(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t)
	n.pools = poolsAt([]string{path})
	expect := func(e disk.Expectation) {
		n.prepare()
		n.store.Expect("pool1", e)
		n.store.Refresh(t.Context())
	}
	expect(disk.Expectation{MayCreate: true, ClusterID: "old"})
	v := n.mustCreate(small)
	mark(t, v, "kept")
	r := small
	r.ID = "pvc-2"
	n.mustCreate(r)
	require.NoError(t, n.store.Delete(t.Context(), "pvc-2", keep(3600)))
	identity := func() string {
		text, err := os.ReadFile(filepath.Join(path, record.MetaDir, record.PoolFile))
		require.NoError(t, err)
		return string(text)
	}
	before := identity()
	for _, e := range []disk.Expectation{
		{MayCreate: true, ClusterID: "new"},
		{MayCreate: true, ClusterID: "new", TakeOver: "another"},
		{MayCreate: true, ClusterID: "new", TakeOver: "new"},
	} {
		expect(e)
		offline(t, n, disk.OfflineForeign)
		require.ErrorContains(t, n.store.Pools()[0].Offline, v.PoolUID)
		require.ErrorContains(t, n.store.Pools()[0].Offline, "(old)")
		require.Empty(t, n.ids())
		require.Empty(t, n.store.Pools()[0].UID)
		require.Equal(t, before, identity(), "it is not touched")
	}
	expect(disk.Expectation{UID: "remembered", ClusterID: "new", TakeOver: "old"})
	offline(t, n, disk.OfflineSwapped)
	require.Equal(t, before, identity(), "another pool is waited for here")

	// Under the same store, as when an administrator decides.
	expect(disk.Expectation{MayCreate: true, ClusterID: "new"})
	n.store.Expect("pool1", disk.Expectation{MayCreate: true, ClusterID: "new", TakeOver: "old"})
	_, err := n.create(Request{ID: "pvc-3", SizeBytes: 16 * mib, FSType: "ext4"})
	var gone *disk.OfflineError
	require.ErrorAs(t, err, &gone, "taking over is for Refresh")
	require.Equal(t, before, identity())
	n.store.Refresh(t.Context())
	require.Nil(t, n.store.Pools()[0].Offline)
	require.Equal(t, v.PoolUID, n.store.Pools()[0].UID)
	require.Equal(t, "node1", n.store.Pools()[0].MadeOn)
	require.Equal(t, []string{"pvc-1"}, n.ids())
	require.Len(t, n.store.Trash(), 1)
	require.Equal(t, "kept", marked(t, v))
	in, err := disk.Inspect(path)
	require.NoError(t, err)
	require.Equal(t, "new", in.Identity.ClusterID)
	require.Equal(t, v.PoolUID, in.Identity.UID)

	// From now on it is this cluster's, and the other one's no more.
	expect(disk.Expectation{ClusterID: "new", TakeOver: "old"})
	require.Nil(t, n.store.Pools()[0].Offline)
	expect(disk.Expectation{ClusterID: "old"})
	offline(t, n, disk.OfflineForeign)
	expect(disk.Expectation{ClusterID: "new"})
	n.check()
}

// TestAnotherPoolInItsPlace: once it was decided that what is in a pool's place
// now is the pool, the volumes of the one before are not its.
func TestAnotherPoolInItsPlace(t *testing.T) {
	d := newDisk(t, "ext4")
	n := newNode(t, d.at)
	first := n.mustCreate(small)
	d.out(t)
	n.store.Refresh(t.Context())
	offline(t, n, disk.OfflineMissing)
	require.Len(t, n.ids(), 1, "it may come back")
	n.store.Expect("pool1", disk.Expectation{MayCreate: true})
	n.store.Refresh(t.Context())
	require.Nil(t, n.store.Pools()[0].Offline)
	require.NotEqual(t, first.PoolUID, n.store.Pools()[0].UID)
	require.Empty(t, n.ids())
	n.mustCreate(small)
	n.check()
}

// TestUninitialized does not make a pool where nobody said that it may.
func TestUninitialized(t *testing.T) {
	testroot.RequireRoot(t)
	n := newNode(t)
	n.pools = poolsAt([]string{t.TempDir()})
	n.prepare()
	n.store.Expect("pool1", disk.Expectation{})
	n.store.Refresh(t.Context())
	offline(t, n, disk.OfflineUninitialized)
	entries, err := os.ReadDir(n.pools[0].Path)
	require.NoError(t, err)
	require.Empty(t, entries)
	n.dirty = true
}

func TestRequireMountpoint(t *testing.T) {
	d := newDisk(t, "xfs")
	if _, err := os.Stat("/proc/1/root/"); err != nil {
		t.Skipf("this machine does not let us see its first process's files (%v); `make test-vm` runs this", err)
	}
	n := newNode(t)
	n.pools = poolsAt([]string{d.at})
	n.pools[0].RequireMountpoint = true
	n.dirty = true // the first process of the machine may not see the mounts of a test
	d.out(t)
	n.start()
	offline(t, n, disk.OfflineNoMountpoint)
	d.in(t)
	n.store.Refresh(t.Context())
	require.Nil(t, n.store.Pools()[0].Offline, "%v", n.store.Pools()[0].Offline)
	d.out(t)
	n.store.Refresh(t.Context())
	offline(t, n, disk.OfflineNoMountpoint)
	d.in(t)
}

// TestNothingIsHeld lets an administrator unmount a pool that is not at work.
func TestNothingIsHeld(t *testing.T) {
	d := newDisk(t, "ext4")
	n := newNode(t, d.at)
	v := n.mustCreate(small)
	verify.Live(t.Context(), n.store.View())
	d.out(t)
	d.in(t)
	n.store.Refresh(t.Context())
	require.DirExists(t, v.Path)
}

// TestUnreadableRecords leaves alone what it cannot read, and says so.
func TestUnreadableRecords(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	for _, id := range []string{"broken", "future", "moved", "good"} {
		r := small
		r.ID = id
		mark(t, n.mustCreate(r), "kept")
	}
	edit := func(id, from, to string) {
		name := filepath.Join(path, id, record.VolumeFile)
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Contains(t, string(data), from)
		require.NoError(t, os.WriteFile(name, []byte(strings.Replace(string(data), from, to, 1)), 0o600))
	}
	edit("broken", "16777216", "16777217")
	edit("future", `"format": 1`, `"format": 2`)
	require.NoError(t, os.Rename(filepath.Join(path, "moved"), filepath.Join(path, "elsewhere")))
	require.NoError(t, os.Mkdir(filepath.Join(path, "photos"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(path, ".quarry/pool.json.bak"), nil, 0o600))
	n.start()
	n.dirty = true
	require.Equal(t, []string{"good"}, n.ids())
	require.Len(t, n.store.Pools()[0].Broken, 4)
	for _, id := range []string{"broken", "future", "elsewhere"} {
		var mismatch *disk.MismatchError
		require.ErrorAs(t, n.store.Delete(t.Context(), id, purge), &mismatch)
		r := small
		r.ID = id
		_, err := n.create(r)
		var conflict *ConflictError
		require.ErrorAs(t, err, &conflict)
		require.FileExists(t, filepath.Join(path, id, record.DataDir, "mark"))
		require.True(t, contains(verify.Live(t.Context(), n.store.View()), "left alone"))
	}
	require.NoError(t, n.store.Drain(t.Context()))

	// A trash entry that says nothing is kept too.
	require.NoError(t, n.store.Delete(t.Context(), "good", keep(0)))
	entry := n.store.Trash()[0].Entry
	require.NoError(t, os.WriteFile(filepath.Join(path, ".quarry/trash", entry, record.TrashedFile),
		[]byte("{}"), 0o600))
	n.start()
	require.NoError(t, n.store.Drain(t.Context()))
	require.DirExists(t, filepath.Join(path, ".quarry/trash", entry, record.DataDir))
}

// TestUnreadableIdentity leaves a pool alone whose identity cannot be read.
func TestUnreadableIdentity(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	n.mustCreate(small)
	require.NoError(t, os.WriteFile(filepath.Join(path, ".quarry/pool.json"), []byte("{"), 0o600))
	n.start()
	offline(t, n, disk.OfflineUnreadable)
	n.dirty = true
}

// TestIDs refuses every id that is not one before it touches a path.
func TestIDs(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".quarry", "A", "lost+found", strings.Repeat("a", 129)} {
		r := small
		r.ID = id
		_, err := n.create(r)
		var bad *record.IDError
		require.ErrorAs(t, err, &bad)
		require.ErrorAs(t, n.store.Delete(t.Context(), id, purge), &bad)
		_, err = n.store.Restore(t.Context(), id)
		require.ErrorAs(t, err, &bad)
	}
}

// TestLinksLeadNowhere puts links into a volume that lead into another one and
// out of the pool, deletes the volume, and looks whether what they led to is as
// it was.
func TestLinksLeadNowhere(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	victim := small
	victim.ID = "victim"
	kept := n.mustCreate(victim)
	mark(t, kept, "kept")
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "file"), nil, 0o600))
	v := n.mustCreate(small)
	for name, to := range map[string]string{
		"absolute": outside, "file": filepath.Join(outside, "file"), "other": "../../victim/data",
		"up": "..", "pool": "../../.quarry", "proc": "/proc/self/root",
	} {
		require.NoError(t, os.Symlink(to, filepath.Join(v.Path, name)))
	}
	require.NoError(t, os.Link(filepath.Join(kept.Path, "mark"), filepath.Join(v.Path, "hard")))
	require.NoError(t, n.store.Delete(t.Context(), v.ID, record.Deletion{OnDelete: "purge", Scrub: "none"}))
	require.NoError(t, n.store.Drain(t.Context()))
	require.Equal(t, "kept", marked(t, kept))
	require.FileExists(t, filepath.Join(outside, "file"))

	// The volume's own directory replaced by a link: refused, whatever is
	// asked.
	require.NoError(t, os.Rename(filepath.Join(path, "victim"), filepath.Join(path, "AWAY")))
	require.NoError(t, os.Symlink(filepath.Join(path, "AWAY"), filepath.Join(path, "victim")))
	require.Error(t, n.store.Delete(t.Context(), "victim", purge))
	_, err := n.store.Activate(t.Context(), "victim")
	require.Error(t, err)
	require.FileExists(t, filepath.Join(path, "AWAY/data/mark"))
	require.NoError(t, os.Remove(filepath.Join(path, "victim")))
	_, err = n.store.Activate(t.Context(), "victim")
	var mismatch *disk.MismatchError
	require.ErrorAs(t, err, &mismatch)
	require.NoError(t, n.store.Delete(t.Context(), "victim", purge), "there is nothing left to delete")
	require.Empty(t, n.ids())
}

// TestPoolIsCopied copies a pool to another disk, as the runbook has it for a
// disk that is to be replaced (`cp -a`). The pool is what it was, but for what
// a copy loses: preallocated space, attributes and project ids, which come back
// by themselves or by Repair.
func TestPoolIsCopied(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS, onExt4Prj, onXFSPrj} {
		t.Run(kind.name, func(t *testing.T) {
			from, to := kind.make(t, 2*gib), kind.make(t, 2*gib)
			n := newNode(t, from)
			directory := Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib}
			if kind.quota == "" {
				directory.Enforcement = record.EnforcementNone
			}
			for _, r := range []Request{
				directory,
				{ID: "pvc-2", FSType: "ext4", SizeBytes: 32 * mib},
				{ID: "pvc-3", FSType: "ext4", SizeBytes: 32 * mib, Allocation: record.AllocationThin},
				{ID: "pvc-4", VolumeMode: record.ModeBlock, SizeBytes: 16 * mib},
			} {
				mark(t, n.mustCreate(r), r.ID)
			}
			n.mustCreate(Request{ID: "pvc-5", FSType: "ext4", SizeBytes: 32 * mib})
			require.NoError(t, n.store.Delete(t.Context(), "pvc-5", keep(3600)))
			uid := n.store.Pools()[0].UID
			n.reboot()
			testroot.Run(t, "cp", "-a", from+"/.", to)

			n.pools[0].Path = to
			n.prepare()
			n.store.Expect("pool1", disk.Expectation{UID: uid})
			n.store.Refresh(t.Context())
			for _, id := range []string{"pvc-1", "pvc-2", "pvc-3", "pvc-4"} {
				v, err := n.store.Get(id)
				require.NoError(t, err)
				require.NoError(t, v.Unavailable)
				require.Equal(t, id, marked(t, v))
				require.NoError(t, n.store.Recheck(t.Context(), id))
			}
			require.NoError(t, verify.Repair(t.Context(), verify.Live(t.Context(), n.store.View())))
			n.check()
			_, err := n.store.Restore(t.Context(), "pvc-5")
			require.NoError(t, err)
		})
	}
}

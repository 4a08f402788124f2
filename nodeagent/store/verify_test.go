package store

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// damaged asserts that something is found, and where it can be repaired, that
// it is.
func damaged(t *testing.T, n *node, what string, repairable bool) {
	t.Helper()
	found := verify.Live(t.Context(), n.store.View())
	require.True(t, contains(found, what), "want %q, have %v", what, found)
	outside := verify.Pools(t.Context(), New(n.options()).View(), true)
	require.True(t, contains(outside, what), "without the store: want %q, have %v", what, outside)
	for _, f := range found {
		if strings.Contains(f.What, what) {
			require.Equal(t, repairable, f.Repair != "", "%v", f)
		}
	}
	if !repairable {
		return
	}
	require.NoError(t, verify.Repair(t.Context(), found))
	n.check()
	require.Empty(t, verify.Pools(t.Context(), New(n.options()).View(), true))
}

func TestVerifyLoopVolumes(t *testing.T) {
	path := onExt4.make(t, 2*gib)
	n := newNode(t, path)
	v := n.mustCreate(Request{ID: "pvc-1", SizeBytes: 32 * mib, FSType: "ext4"})
	raw := n.mustCreate(Request{ID: "raw", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
	mark(t, v, "kept")
	n.check()
	image := filepath.Join(path, "pvc-1", record.ImageFile)
	deviceOf := func(image string) loop.Device {
		f, err := os.Open(image)
		require.NoError(t, err)
		defer f.Close()
		devices, err := loop.Find(f)
		require.NoError(t, err)
		require.Len(t, devices, 1)
		return devices[0]
	}

	// Attached by hand, as losetup does it: with discards.
	n.reboot()
	testroot.Losetup(t, image, "--sector-size", strconv.Itoa(int(v.LogicalBlockSize)))
	damaged(t, n, "passes discards on", true)
	dev := deviceOf(image)
	testroot.Run(t, "losetup", "--direct-io=off", dev.Path)
	damaged(t, n, "does not use direct I/O", true)

	// A hole in the image, as a discard makes it.
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	require.NoError(t, err)
	testroot.Run(t, "umount", filepath.Dir(v.Path))
	require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 31*mib, mib))
	require.NoError(t, f.Close())
	damaged(t, n, "not thick any more", true)
	require.Equal(t, "kept", marked(t, v))

	testroot.Run(t, "umount", filepath.Dir(v.Path))
	damaged(t, n, "it is not mounted", true)
	require.Equal(t, "kept", marked(t, v))

	require.NoError(t, os.Remove(raw.Path))
	damaged(t, n, "its link leads to", true)
	require.NoError(t, os.Remove(raw.Path))
	require.NoError(t, os.Symlink("/dev/null", raw.Path))
	damaged(t, n, "its link leads to", true)
	require.NoError(t, os.Symlink("/dev/null", filepath.Join(n.devices, "nobody")))
	damaged(t, n, "link of no Block volume", true)

	require.NoError(t, os.MkdirAll(filepath.Join(path, ".quarry/by-claim/ns"), 0o755))
	require.NoError(t, os.Symlink("../../../gone", filepath.Join(path, ".quarry/by-claim/ns/claim")))
	damaged(t, n, "leads to no volume", true)

	// A second device over the image: each has a cache of its own.
	second := testroot.Losetup(t, deviceImage(t, path, "raw"))
	damaged(t, n, "several loop devices", false)
	testroot.Run(t, "losetup", "--detach", second)

	// Left in tmp and in the trash by something that is no agent.
	tmp := filepath.Join(path, ".quarry/tmp/pvc-9")
	require.NoError(t, os.Mkdir(tmp, 0o700))
	left, err := os.Create(filepath.Join(tmp, record.ImageFile))
	require.NoError(t, err)
	require.NoError(t, left.Truncate(16*mib))
	require.NoError(t, left.Close())
	testroot.Losetup(t, filepath.Join(tmp, record.ImageFile))
	found := verify.Live(t.Context(), n.store.View())
	require.True(t, contains(found, "never finished"))
	require.NoError(t, verify.Repair(t.Context(), found))
	n.check()

	require.NoError(t, n.store.Delete(t.Context(), "raw", keep(3600)))
	entry := filepath.Join(path, ".quarry/trash", n.store.Trash()[0].Entry)
	testroot.Losetup(t, filepath.Join(entry, record.ImageFile))
	damaged(t, n, "is still over its image", true)
	testroot.Losetup(t, filepath.Join(entry, record.ImageFile))
	require.NoError(t, n.store.Delete(t.Context(), "raw", purge))
	require.NoError(t, os.Remove(filepath.Join(entry, record.ImageFile)))
	damaged(t, n, "is over a deleted image", true)
}

func deviceImage(t *testing.T, path, id string) string {
	t.Helper()
	return filepath.Join(path, id, record.ImageFile)
}

// TestVerifyFindsWhatWasWrittenBeneath tells of a pod's files on the pool's own
// disk, and of a volume without its data directory.
func TestVerifyFindsWhatWasWrittenBeneath(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(Request{ID: "pvc-1", SizeBytes: 32 * mib, FSType: "ext4"})
	require.NoError(t, os.Remove(v.Path))
	damaged(t, n, "the directory its user sees", false)
	testroot.Run(t, "umount", filepath.Dir(v.Path))
	require.NoError(t, os.Mkdir(v.Path, 0o755))
	require.True(t, contains(verify.Live(t.Context(), n.store.View()), "something was written to the directory"))
	n.dirty = true
}

func TestVerifyDirectories(t *testing.T) {
	for _, k := range quotaPools {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, gib)
			n := newNode(t, path)
			v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
			mark(t, v, "kept")
			pool, err := os.Open(path)
			require.NoError(t, err)
			defer pool.Close()
			data, err := os.Open(v.Path)
			require.NoError(t, err)
			defer data.Close()
			leak := quota.LastID - 7
			if k.quota == record.QuotaBtrfs {
				require.NoError(t, btrfs.SetLimit(pool, uint32(v.QuotaID), 0))
				damaged(t, n, "its limit is 0 bytes", true)
				require.NoError(t, btrfs.CreateGroup(pool, leak))
				damaged(t, n, "is no volume's", true)
				return
			}
			require.NoError(t, quota.SetLimits(pool, uint32(v.QuotaID), quota.Limits{Bytes: 1 << 40}))
			damaged(t, n, "its limit is", true)
			require.NoError(t, quota.Clear(pool, uint32(v.QuotaID)))
			damaged(t, n, "its limit is 0 bytes", true)
			require.NoError(t, quota.SetProject(data, 0, false))
			damaged(t, n, "its root directory has project id 0", true)
			require.NoError(t, quota.SetLimits(pool, leak, quota.Limits{Bytes: 1 << 20}))
			damaged(t, n, "is no volume's", true)
			file, err := os.Open(filepath.Join(v.Path, "mark"))
			require.NoError(t, err)
			defer file.Close()
			require.NoError(t, quota.SetProject(file, 0, false))
			damaged(t, n, "are not charged to it", true)

			// The record of one under the id of the other.
			other := n.mustCreate(Request{ID: "pvc-2", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
			before := other.Volume
			rewrite(t, n, "pvc-2", func(rec *record.Volume) { rec.QuotaID = v.QuotaID })
			require.True(t, contains(verify.Live(t.Context(), n.store.View()), "its quota id"))
			n.start()
			require.Equal(t, []string{"pvc-1"}, n.ids(), "two volumes under one limit are not served")
			rewrite(t, n, "pvc-2", func(rec *record.Volume) { *rec = before })
			n.start()
		})
	}
}

func rewrite(t *testing.T, n *node, id string, change func(*record.Volume)) {
	t.Helper()
	require.NoError(t, n.store.pools[0].with(func(r *disk.Root) error {
		rec, err := disk.ReadVolume(r.Dir, id)
		if err != nil {
			return err
		}
		change(rec)
		dir, err := r.OpenDir(id)
		if err != nil {
			return err
		}
		defer dir.Close()
		return disk.WriteVolume(dir, rec)
	}))
}

// TestActivatePutsQuotaBack: what an administrator undid is in force again
// after the next look.
func TestActivatePutsQuotaBack(t *testing.T) {
	for _, k := range quotaPools {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, gib)
			n := newNode(t, path)
			v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
			require.NoError(t, n.store.pools[0].with(func(r *disk.Root) error {
				return backend.SetLimit(r, &v.Volume, 1<<40)
			}))
			_, err := n.store.Activate(t.Context(), v.ID)
			require.NoError(t, err)
			require.Empty(t, verify.Live(t.Context(), n.store.View()))
		})
	}
}

// TestInspectChangesNothing lists a pool without a store, to the last byte as
// it was.
func TestInspectChangesNothing(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	n.mustCreate(Request{ID: "pvc-1", SizeBytes: 32 * mib, FSType: "ext4"})
	n.mustCreate(smallNamed("pvc-2"))
	n.mustCreate(smallNamed("pvc-3"))
	require.NoError(t, n.store.Delete(t.Context(), "pvc-3", keep(60)))
	n.reboot()
	require.NoError(t, os.Mkdir(filepath.Join(path, ".quarry/tmp/pvc-4"), 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(path, "other"), 0o700))
	tree := func() string {
		out, err := exec.Command("find", path, "-printf", "%p %s %T@ %C@\n").Output()
		require.NoError(t, err)
		return string(out)
	}
	before := tree()
	in, err := disk.Inspect(path)
	require.NoError(t, err)
	require.Equal(t, before, tree())
	require.Len(t, in.Volumes, 2)
	require.Equal(t, filepath.Join(path, "pvc-1/mount/data"), disk.PathOf(&in.Volumes[0], path, disk.DeviceDir))
	require.Len(t, in.Trash, 1)
	require.Equal(t, "pvc-3", in.Trash[0].Volume.ID)
	require.Equal(t, []string{"pvc-4"}, in.Unfinished)
	require.Contains(t, in.Broken, "other")
	require.Equal(t, n.store.Pools()[0].UID, in.Identity.UID)
	verify.Pools(context.Background(), New(n.options()).View(), true)
	require.Equal(t, before, tree())
	n.dirty = true
	_, err = disk.Inspect(t.TempDir())
	var offline *disk.OfflineError
	require.ErrorAs(t, err, &offline)
}

func smallNamed(id string) Request {
	r := small
	r.ID = id
	return r
}

// Who looks at one pool of several knows nothing of the others' volumes, and
// takes nothing of theirs away.
func TestVerifySomePools(t *testing.T) {
	disk := onBtrfs.make(t, 2*gib)
	one, two := filepath.Join(disk, "one"), filepath.Join(disk, "two")
	require.NoError(t, os.Mkdir(one, 0o755))
	require.NoError(t, os.Mkdir(two, 0o755))
	n := newNode(t, one, two)
	n.mustCreate(Request{ID: "raw", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock, Pool: n.pools[1].Name})
	n.mustCreate(Request{ID: "directory", SizeBytes: 32 * mib, Backend: record.BackendDirectory, Pool: n.pools[1].Name})

	alone := n.options()
	alone.Pools = n.pools[:1]
	look := func(all bool) []verify.Finding { return verify.Pools(t.Context(), New(alone).View(), all) }

	repairs := 0
	for _, f := range look(true) {
		if f.Repair != "" {
			repairs++
		}
	}
	require.Equal(t, 2, repairs, "were it all, the link and the qgroup would be left over")

	notes := look(false)
	require.Len(t, notes, 2)
	for _, f := range notes {
		require.Equal(t, verify.SeverityNote, f.Severity)
		require.Empty(t, f.Repair)
		require.Contains(t, f.What, "or of a pool that was not looked at")
		require.Error(t, f.Apply(t.Context()))
	}
	n.check()
}

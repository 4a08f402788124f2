package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// availability is what the store says of a volume.
func (n *node) availability(id string) error {
	n.t.Helper()
	v, err := n.store.Get(id)
	require.NoError(n.t, err)
	return v.Unavailable
}

// watch has the node's watcher run until the test ends.
func (n *node) watch() {
	watching := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { watching <- n.store.Watch(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		require.NoError(n.t, <-watching)
	})
}

// One look finds all frozen filesystems, though none that is frozen lets go of
// who asks it, and no more than may be are left waiting.
func TestLookFindsFrozenFilesystems(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			n := newNode(t, onExt4.make(t, 4*gib))
			n.store.backends.Questions.Within = time.Second
			n.store.watcher.hanging.most = 3
			var volumes []Volume
			for i := range 5 {
				volumes = append(volumes, n.mustCreate(imageVolume(fmt.Sprintf("pvc-%d", i), fstype)))
				mark(t, volumes[i], volumes[i].ID)
			}
			n.look()
			written := n.sectorsWritten("pvc-4")
			n.look()
			require.Equal(t, written, n.sectorsWritten("pvc-4"), "nothing is written to find out")

			thaw := make([]func(), 4)
			for i := range thaw {
				thaw[i] = freeze(t, filepath.Dir(volumes[i].Path))
			}
			sick := func() (count int) {
				for _, v := range volumes {
					if err := n.availability(v.ID); err != nil {
						n.requireSick(v.ID, v1alpha1.ReasonNotResponding)
						count++
					}
				}
				return count
			}
			n.look()
			require.Equal(t, 3, sick())
			n.tryNow()
			n.look()
			require.Equal(t, 3, sick(), "as long as none of them answers")
			require.Equal(t, map[string]int{v1alpha1.ReasonNotResponding: 3}, n.store.Unavailable())
			n.requireUp("pvc-4", "pvc-4")

			for i := range thaw {
				thaw[i]()
			}
			comesTrue(t, func() bool { n.look(); return sick() == 0 }, "all are well again")
			for _, v := range volumes {
				n.requireUp(v.ID, v.ID)
			}
		})
	}
}

// sectorsWritten is how much was written to a volume's device since it was
// attached, with what waits to be written.
func (n *node) sectorsWritten(id string) string {
	n.t.Helper()
	v, err := n.store.Get(id)
	require.NoError(n.t, err)
	testroot.Run(n.t, "sync", "--file-system", v.Path)
	device := testroot.LoopsOver(n.t, filepath.Join(n.pools[0].Path, id, record.ImageFile))[0]
	var reads, merged, sectors, took, writes, writesMerged, written string
	_, err = fmt.Sscan(n.sysfs(device, "stat"), &reads, &merged, &sectors, &took, &writes, &writesMerged, &written)
	require.NoError(n.t, err)
	return written
}

// The watcher notices a freeze, and its end, by itself.
func TestWatchNoticesAFreeze(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	n.store.backends.Questions.Within = 300 * time.Millisecond
	v := n.mustCreate(imageVolume("pvc-1", "ext4"))
	mark(t, v, "mine")
	n.watch()
	thaw := freeze(t, filepath.Dir(v.Path))
	comesTrue(t, func() bool { return n.availability("pvc-1") != nil }, "it is said")
	n.requireSick("pvc-1", v1alpha1.ReasonNotResponding)
	thaw()
	comesTrue(t, func() bool { return n.availability("pvc-1") == nil }, "it is well again")
	n.requireUp("pvc-1", "mine")
}

// Another filesystem in the place of a volume's is nobody's volume: it is said,
// left alone, and the volume is back once it is gone.
func TestAnotherFilesystemInItsPlace(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		for _, c := range []struct {
			name string
			away func(t *testing.T, at, device string)
		}{
			{"over it", func(*testing.T, string, string) {}},
			{"instead of it", func(t *testing.T, at, _ string) { testroot.Run(t, "umount", at) }},
			{"and its own elsewhere", func(t *testing.T, at, device string) {
				testroot.Run(t, "umount", at)
				testroot.Mount(t, device, t.TempDir())
			}},
		} {
			t.Run(fstype+" "+c.name, func(t *testing.T) {
				path := onExt4.make(t, gib)
				n := newNode(t, path)
				v := n.mustCreate(imageVolume("pvc-1", fstype))
				mark(t, v, "mine")
				n.look()
				at := filepath.Dir(v.Path)
				device := testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0]
				other := testroot.NewImage(t, 64*mib)
				testroot.Mkfs(t, "ext4", other.Name())
				otherDevice := testroot.NewLoop(t, other.Name())
				c.away(t, at, device)
				testroot.Run(t, "mount", otherDevice, at)
				t.Cleanup(func() { _ = exec.Command("umount", otherDevice).Run() }) // where the test ended early

				n.look()
				require.ErrorContains(t, n.availability("pvc-1"), "something else is mounted in its place")
				_, err := n.store.Activate(t.Context(), "pvc-1")
				require.Error(t, err, "a pod is given nothing")
				require.Contains(t, strings.Fields(testroot.Run(t, "findmnt", "--noheadings", "--output", "SOURCE",
					"--mountpoint", at)), otherDevice, "it is left alone")

				testroot.Run(t, "umount", otherDevice)
				n.tryNow()
				n.look()
				n.requireUp("pvc-1", "mine")
			})
		}
	}
}

// An image that was moved or deleted while its volume is up is said to be gone,
// and its device, which has the data, is let be; it is well again when the
// image is back.
func TestImageTakenAway(t *testing.T) {
	for _, r := range []Request{imageVolume("pvc-1", "ext4"), imageVolume("pvc-1", "xfs"), imageVolume("pvc-1",
		"btrfs"), blockVolume("pvc-1")} {
		t.Run(r.VolumeMode+r.FSType+" moved", func(t *testing.T) {
			path := onExt4.make(t, gib)
			n := newNode(t, path)
			v := n.mustCreate(r)
			mark(t, v, "mine")
			n.look()
			image := filepath.Join(path, "pvc-1", record.ImageFile)
			require.NoError(t, os.Rename(image, image+".away"))
			n.look()
			require.ErrorContains(t, n.availability("pvc-1"), "its image")
			require.Equal(t, "mine", marked(t, v), "who has it keeps it")
			require.NoError(t, os.Rename(image+".away", image))
			n.tryNow()
			n.look()
			n.requireUp("pvc-1", "mine")
		})
		t.Run(r.VolumeMode+r.FSType+" deleted", func(t *testing.T) {
			path := onExt4.make(t, gib)
			n := newNode(t, path)
			v := n.mustCreate(r)
			mark(t, v, "mine")
			n.look()
			image := filepath.Join(path, "pvc-1", record.ImageFile)
			device := testroot.LoopsOver(t, image)[0]
			require.NoError(t, os.Remove(image))
			n.look()
			require.ErrorContains(t, n.availability("pvc-1"), "its image")
			require.Equal(t, "mine", marked(t, v), "who has it keeps it")

			// A person puts it back, from the device that still has it.
			if r.VolumeMode != record.ModeBlock {
				testroot.Run(t, "umount", filepath.Dir(v.Path))
			}
			copyDevice(t, device, image)
			n.store.watcher.running.Wait()
			n.tryNow()
			n.look()
			n.requireUp("pvc-1", "mine")
			require.NotEqual(t, device, testroot.LoopsOver(t, image)[0], "the file that is there is used")
			testroot.Run(t, "losetup", "--detach", device) // it is the person's
		})
	}
}

func copyDevice(t *testing.T, device, image string) {
	t.Helper()
	from, err := os.Open(device)
	require.NoError(t, err)
	defer from.Close()
	to, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = io.Copy(to, from)
	require.NoError(t, errors.Join(err, to.Sync(), to.Close()))
}

// Quotas that were switched off for a whole filesystem are noticed by a look,
// and what is missing is said for as long as it is.
func TestLookSeesQuotasOff(t *testing.T) {
	n := newNode(t, onBtrfs.make(t, gib))
	n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
	n.look()
	n.store.watcher.count = 0 // a look at limits is due
	testroot.Run(t, "btrfs", "quota", "disable", n.pools[0].Path)
	n.look()
	v, err := n.store.Get("pvc-1")
	require.NoError(t, err)
	require.NoError(t, v.Unavailable, "its data stays")
	require.Error(t, v.NotEnforced)
	n.dirty = true // quotas that were off know nothing of what there is

	pool, err := os.Open(n.pools[0].Path)
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, btrfs.EnableSimple(pool))
	n.store.watcher.count = 0
	n.look()
	v, err = n.store.Get("pvc-1")
	require.NoError(t, err)
	require.ErrorContains(t, v.NotEnforced, "switched off and on")
}

// A repair that is refused memory leaves a note on the disk, whoever asks next;
// with more memory the volume is back.
func TestRepairWithoutMemory(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	r := imageVolume("pvc-1", "ext4")
	r.SizeBytes = 192 * mib
	v := n.mustCreate(r)
	mark(t, v, "mine")
	n.store.backends.RepairMemory.Store(2 * mib)
	note := filepath.Join(path, "pvc-1", record.RepairFile)
	n.look()
	damages()[0].do(t, filepath.Dir(v.Path), testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0])
	n.look()
	require.ErrorContains(t, n.requireSick("pvc-1", v1alpha1.ReasonDamaged), "within 2 MiB of memory")
	require.FileExists(t, note)

	// Another process knows it too, and tries once more.
	n.start()
	n.requireUp("pvc-1", "mine")
	require.NoFileExists(t, note)

	n.store.backends.RepairMemory.Store(2 * mib)
	n.look()
	damages()[0].do(t, filepath.Dir(v.Path), testroot.LoopsOver(t, filepath.Join(path, "pvc-1", record.ImageFile))[0])
	for range backend.RepairsAllowed {
		n.look()
		n.requireSick("pvc-1", v1alpha1.ReasonDamaged)
		n.tryNow()
	}
	n.start()
	require.ErrorContains(t, n.requireSick("pvc-1", v1alpha1.ReasonDamaged), note,
		"enough was tried: a person is to look")
	require.NoError(t, os.Remove(note))
	n.tryNow()
	n.look()
	n.requireUp("pvc-1", "mine")
}

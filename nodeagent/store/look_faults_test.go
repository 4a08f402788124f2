package store

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
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

// One look finds all frozen filesystems, though none that is frozen lets go of who asks it, and no more than may be are left waiting.
func TestLookFindsFrozenFilesystems(t *testing.T) {
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			n := newNode(t, onExt4.make(t, 4*gib))
			n.store.questions.within = time.Second
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

// sectorsWritten is how much was written to a volume's device since it was attached, with what waits to be written.
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
	n.store.questions.within = 300 * time.Millisecond
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

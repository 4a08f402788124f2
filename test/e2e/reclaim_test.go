package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// namesVolume has a claim ask for one PersistentVolume.
func namesVolume(name string) claimOption {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name }
}

// purgeRecord has a volume deleted whose PersistentVolume is gone, as a person
// does who has looked at the data.
func purgeRecord(t testing.TB, pv *corev1.PersistentVolume) {
	t.Helper()
	id, _ := whereIs(pv)
	kubectl(t, "patch", "volumes.quarry.storage", id, "--type=merge", "-p", `{"spec":{"desiredState":"Deleted"}}`)
	gone(t, pv)
}

func TestRetainedVolumeIsClaimedAgain(t *testing.T) {
	t.Parallel()
	for _, d := range frontDoors {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			class := d.newClass(t, tier(parameters{"pool": "ssd"}), retain)
			claim(t, ns, "data", class, "64Mi")
			before := pod(t, ns, "app", "data", `echo kept > /data/file; sync; touch /tmp/done; `+idle)
			pv := bound(t, ns, "data")
			require.Equal(t, corev1.PersistentVolumeReclaimRetain, pv.Spec.PersistentVolumeReclaimPolicy)
			eventually(t, "it has written", func() (bool, string) {
				out := inPod(t, ns, "app", "ls /tmp")
				return strings.Contains(out, "done"), out
			})
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			pvPhase(t, pv.Name, corev1.VolumeReleased)

			// As Kubernetes' documentation has it: without a claimRef it is
			// available, and a claim may name it.
			kubectl(t, "patch", "pv", pv.Name, "--type=merge", "-p", `{"spec":{"claimRef":null}}`)
			pvPhase(t, pv.Name, corev1.VolumeAvailable)
			claim(t, ns, "again", class, "64Mi", namesVolume(pv.Name))
			require.Equal(t, pv.Name, bound(t, ns, "again").Name)
			after := pod(t, ns, "app", "again", idle)
			require.Equal(t, before.Spec.NodeName, after.Spec.NodeName)
			require.Equal(t, "kept", inPod(t, ns, "app", "cat /data/file"))

			// It is a volume like any other now; what its policy says when it
			// is released counts.
			kubectl(t, "patch", "pv", pv.Name, "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "again")
			gone(t, pv)
		})
	}
}

// TestPersistentVolumeDeletedFirst: the policy is kept when the
// PersistentVolume is deleted before its claim.
func TestPersistentVolumeDeletedFirst(t *testing.T) {
	t.Parallel()
	for _, d := range frontDoors {
		for _, policy := range []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimDelete,
			corev1.PersistentVolumeReclaimRetain} {
			t.Run(d.name+" "+string(policy), func(t *testing.T) {
				t.Parallel()
				ns := newNamespace(t)
				class := d.newClass(t, unenforced("ssd"))
				claim(t, ns, "data", class, "64Mi")
				pod(t, ns, "app", "data", idle)
				pv := bound(t, ns, "data")
				dir := volumeDir(t, pv)
				_, node := whereIs(pv)
				inPod(t, ns, "app", "echo kept > /data/file; sync")
				kubectl(t, "patch", "pv", pv.Name, "-p",
					fmt.Sprintf(`{"spec":{"persistentVolumeReclaimPolicy":%q}}`, policy))
				kubectl(t, "delete", "pv", pv.Name, "--wait=false")
				require.Equal(t, "kept", inPod(t, ns, "app", "cat /data/file"), "it is in use, and stays")
				deletePod(t, ns, "app")
				deleteClaim(t, ns, "data")
				if policy == corev1.PersistentVolumeReclaimDelete {
					gone(t, pv)
					return
				}
				pvGone(t, pv.Name)
				require.Equal(t, "kept", onHost(t, node, "cat "+dir+"/data/file"))
				id, _ := whereIs(pv)
				phaseOf(t, id, "Ready")
				purgeRecord(t, pv)
			})
		}
	}
}

// TestTrashTakesRoomAndIsFreed has small pools for itself: it looks at how much
// room there is.
func TestTrashTakesRoomAndIsFreed(t *testing.T) {
	t.Parallel()
	fills(t, "small")
	const size = int64(200 << 20)
	trash := func(retention string) parameters {
		return parameters{"pool": "small", "backend": "loop", "onDelete": "trash", "trashRetention": retention}
	}
	for i, d := range frontDoors {
		node := cluster.Nodes()[1+i]
		entries := func(t testing.TB) string { return onHost(t, node, "ls /mnt/disks/small/.quarry/trash; true") }
		trashed := func(t testing.TB, ns, name, class string, size int64) *corev1.PersistentVolume {
			t.Helper()
			claim(t, ns, name, class, mib(size), onNode(node))
			pv := bound(t, ns, name)
			deleteClaim(t, ns, name)
			pvGone(t, pv.Name)
			id, _ := whereIs(pv)
			require.Contains(t, entries(t), id+"@", "at once, when the PersistentVolume is gone")
			t.Cleanup(func() { // what is left when the test fails
				_, _ = cluster.Kubectl(contextForCleanup(), "patch", "volumes.quarry.storage", id, "--type=merge", "-p",
					`{"spec":{"desiredState":"Deleted"}}`)
			})
			return pv
		}
		t.Run(d.name+" expires", func(t *testing.T) {
			ns := newNamespace(t)
			empty := room(t, node, "small")
			pv := trashed(t, ns, "data", d.newClass(t, trash("20s")), size)
			id, _ := whereIs(pv)
			phaseOf(t, id, "Trashed")
			require.LessOrEqual(t, room(t, node, "small"), empty-size, "it counts against the pool")
			gone(t, pv)
			eventually(t, "the room is there again", func() (bool, string) {
				now := room(t, node, "small")
				return now >= empty-1<<20, mib(now)
			})
			require.NotContains(t, entries(t), id)
		})
		t.Run(d.name+" gives way", func(t *testing.T) {
			ns := newNamespace(t)
			class := d.newClass(t, trash("72h"))
			oldest, newest := trashed(t, ns, "oldest", class, size), trashed(t, ns, "newest", class, size)
			kept, _ := whereIs(newest)
			phaseOf(t, kept, "Trashed")
			// More than there is without the oldest of them, and less than with
			// it. Only that node will do.
			claim(t, ns, "data", class, mib(room(t, node, "small")+size/2))
			newPod(t, ns, "app", onlyOn(node), "data")
			running(t, ns, "app")
			gone(t, oldest)
			phaseOf(t, kept, "Trashed")
			require.Contains(t, entries(t), kept+"@")
			purgeRecord(t, newest)
			pv := bound(t, ns, "data")
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			pvGone(t, pv.Name)
			purgeRecord(t, pv)
		})
	}
}

// TestRecycledVolume: the space of what was deleted is scrubbed, and is the
// next claim's; no PersistentVolume holds it.
func TestRecycledVolume(t *testing.T) {
	t.Parallel()
	const marker = "secret-of-the-last-tenant"
	for _, d := range frontDoors {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			class := d.newClass(t, parameters{"pool": "ssd", "backend": "loop", "onDelete": "recycle"})
			claim(t, ns, "old", class, "32Mi", block)
			pod(t, ns, "old", "old", idle)
			inPod(t, ns, "old", fmt.Sprintf("yes %s | dd of=/dev/data bs=1M iflag=fullblock count=32 "+
				"conv=fsync 2>/dev/null", marker))
			require.NotEqual(t, "0", inPod(t, ns, "old", "grep -c "+marker+" /dev/data; true"))
			pv := bound(t, ns, "old")
			deletePod(t, ns, "old")
			deleteClaim(t, ns, "old")
			gone(t, pv)

			id, node := whereIs(pv)
			claim(t, ns, "new", class, "32Mi", block)
			newPod(t, ns, "new", onlyOn(node, rawAt("new")))
			running(t, ns, "new")
			again := bound(t, ns, "new")
			other, _ := whereIs(again)
			require.NotEqual(t, id, other)
			require.Equal(t, "0", inPod(t, ns, "new", "grep -c "+marker+" /dev/data; true"))
			require.Equal(t, "0", inPod(t, ns, "new", `tr -d '\0' < /dev/data | wc -c`), "it is all zeros")
			deletePod(t, ns, "new")
			deleteClaim(t, ns, "new")
			gone(t, again)
			list, err := kube.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			for _, p := range list.Items {
				require.NotEqual(t, class, p.Spec.StorageClassName, "%s: nobody asked for it", p.Name)
			}
		})
	}
}

// TestScrubbedVolume looks for what was in a volume on the disk itself, from
// outside of the node.
func TestScrubbedVolume(t *testing.T) {
	t.Parallel()
	for _, d := range frontDoors {
		for _, test := range []struct{ scrub, pool string }{
			{"zero", "hdd"},
			{"discard", "ssd"}, // mounted so that it discards
		} {
			t.Run(d.name+" "+test.scrub, func(t *testing.T) {
				t.Parallel()
				ns := newNamespace(t)
				class := d.newClass(t, parameters{"pool": test.pool, "backend": "loop", "scrub": test.scrub})
				claim(t, ns, "data", class, "32Mi")
				p := pod(t, ns, "app", "data", idle)
				pv := bound(t, ns, "data")
				marker := "on-the-disk-" + string(p.UID)
				inPod(t, ns, "app", "yes "+marker+" | dd of=/data/file bs=1M iflag=fullblock count=8 "+
					"conv=fsync 2>/dev/null")
				disk, err := cluster.DiskImage(p.Spec.NodeName, "/mnt/disks/"+test.pool)
				require.NoError(t, err)
				holds := func() bool {
					onHost(t, p.Spec.NodeName, "sync -f /mnt/disks/"+test.pool)
					return fileHolds(t, disk, marker)
				}
				require.True(t, holds(), "it is found while it is there")
				deletePod(t, ns, "app")
				deleteClaim(t, ns, "data")
				gone(t, pv)
				eventually(t, "nothing of it is on the disk", func() (bool, string) { return !holds(), "" })
			})
		}
	}
}

// fileHolds reports whether text is anywhere in a file.
func fileHolds(t testing.TB, name, text string) bool {
	t.Helper()
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	buffer, kept := make([]byte, 4<<20), 0
	for {
		n, err := io.ReadFull(f, buffer[kept:])
		if bytes.Contains(buffer[:kept+n], []byte(text)) {
			return true
		}
		if err != nil {
			require.True(t, err == io.EOF || err == io.ErrUnexpectedEOF, "%v", err)
			return false
		}
		kept = copy(buffer, buffer[len(buffer)-len(text):]) // what may go on in the next piece
	}
}

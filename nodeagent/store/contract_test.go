package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// TestContract is what every backend keeps on every filesystem it is offered
// on.
func TestContract(t *testing.T) {
	forEachShape(t, 2*gib, func(t *testing.T, n *node, k poolKind, r Request) {
		r.Origin = record.Origin{ClaimNamespace: "default", ClaimName: "data"}
		raw := r.VolumeMode == record.ModeBlock
		limited := r.Enforcement != record.EnforcementNone
		if !raw {
			r.Owner, r.Group, r.Mode = 1234, 4321, 0o2777
		}
		before := used(t, n.pools[0].Path)
		v := n.mustCreate(r)
		require.NoError(t, v.Unavailable)
		require.Equal(t, r.SizeBytes, v.SizeBytes)
		again := n.mustCreate(r)
		require.Equal(t, v, again, "a second create changes nothing")
		if raw {
			checkDevice(t, v)
		} else {
			checkRoot(t, n, v)
			if limited {
				checkLimit(t, k, v)
			}
		}
		checkAllocation(t, n, v)
		mark(t, v, "kept")

		v = checkGrowth(t, n, k, v)

		t.Run("restart", func(t *testing.T) {
			n.start()
			got, err := n.store.Get(v.ID)
			require.NoError(t, err)
			require.NoError(t, got.Unavailable)
			require.Equal(t, v, got)
			require.Equal(t, "kept", marked(t, v))
			require.Empty(t, verify.Live(t.Context(), n.store.View()))
		})
		t.Run("reboot", func(t *testing.T) {
			n.reboot()
			n.prepare()
			if v.Backend == record.BackendLoop {
				_, err := os.Stat(v.Path)
				require.ErrorIs(t, err, os.ErrNotExist, "nobody finds an empty directory in its place")
			}
			n.store.Refresh(t.Context())
			require.Equal(t, "kept", marked(t, v))
			require.Empty(t, verify.Live(t.Context(), n.store.View()))
		})
		t.Run("in use", func(t *testing.T) { checkInUse(t, n, v) })
		t.Run("trash", func(t *testing.T) {
			require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)))
			require.NoFileExists(t, v.Path)
			require.NoError(t, n.store.Drain(t.Context()))
			require.Equal(t, v.Owed(), n.store.Pools()[0].Promised, "trash counts as promised")
			require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)), "it is deleted already")
			n.start()
			got, err := n.store.Restore(t.Context(), v.ID)
			require.NoError(t, err)
			require.Equal(t, v, got)
			require.Equal(t, "kept", marked(t, v))
			require.Empty(t, verify.Live(t.Context(), n.store.View()))
		})
		require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
		require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
		require.NoError(t, n.store.Drain(t.Context()))
		require.Zero(t, n.store.Pools()[0].Promised)
		require.Empty(t, n.ids())
		require.Less(t, used(t, n.pools[0].Path), before+8*mib, "its space is free again")
		entries, err := os.ReadDir(filepath.Join(n.pools[0].Path, ".quarry/by-claim"))
		require.NoError(t, err)
		require.Empty(t, entries)
	})
}

// checkRoot looks at the root directory of what the user sees.
func checkRoot(t *testing.T, n *node, v Volume) {
	var st unix.Stat_t
	require.NoError(t, unix.Stat(v.Path, &st))
	require.Equal(t, []uint32{1234, 4321, 0o2777}, []uint32{st.Uid, st.Gid, st.Mode & 0o7777})
	link, err := os.Readlink(filepath.Join(n.pools[0].Path, ".quarry/by-claim/default/data"))
	require.NoError(t, err)
	require.Equal(t, v.ID, filepath.Base(link))
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(v.Path, &fs))
	size := int64(fs.Blocks) * fs.Frsize
	if v.Backend == record.BackendLoop || v.QuotaKind == record.QuotaProject {
		require.LessOrEqual(t, size, v.SizeBytes, "df inside shows the volume's size")
		require.Greater(t, size, v.SizeBytes*7/10)
	}
	if v.Backend == record.BackendLoop {
		require.NotZero(t, fs.Flags&unix.ST_NOSUID)
		require.NotZero(t, fs.Flags&unix.ST_NODEV)
	}
}

// checkLimit tries to write more than the volume's size, in every way there is.
func checkLimit(t *testing.T, k poolKind, v Volume) {
	root := tenant.Root
	if k.fstype == "ext4" && v.QuotaKind == record.QuotaProject {
		root = tenant.ContainerRoot // CAP_SYS_RESOURCE is above quotas on ext4: docs/enforcement.md
	}
	dir, err := os.Open(v.Path)
	require.NoError(t, err)
	defer dir.Close()
	more := strconv.FormatInt(v.SizeBytes*2, 10)
	for _, who := range []tenant.Who{root, tenant.User} {
		for _, how := range []string{"write", "direct", "fallocate"} {
			result := tenant.Run(t, who, dir, how, "big", more)
			require.Contains(t, []error{unix.ENOSPC, unix.EDQUOT}, error(result.Errno), "%s as %s", how, who)
			require.LessOrEqual(t, result.Done, v.SizeBytes, "%s as %s", how, who)
			tenant.Run(t, who, dir, "remove", "big")
			settle(t, dir)
		}
	}
	if v.Inodes > 0 && !v.InodesBySize {
		_, before, err := quota.GetLimits(dir, uint32(v.QuotaID))
		require.NoError(t, err)
		result := tenant.Run(t, tenant.User, dir, "files", "f", "1000")
		require.Contains(t, []error{unix.ENOSPC, unix.EDQUOT}, error(result.Errno))
		require.LessOrEqual(t, result.Done, v.Inodes)
		for i := range result.Done {
			require.NoError(t, os.Remove(filepath.Join(v.Path, fmt.Sprintf("f%d", i))))
		}
		// xfs gives the inodes of removed files back in the background.
		require.Eventually(t, func() bool {
			_, usage, err := quota.GetLimits(dir, uint32(v.QuotaID))
			return err == nil && usage.Inodes <= before.Inodes
		}, time.Minute, 10*time.Millisecond)
	}
}

// settle lets the filesystem finish what removing a file began: btrfs and xfs
// give the space back at the next commit.
func settle(t *testing.T, dir *os.File) {
	t.Helper()
	require.NoError(t, unix.Syncfs(int(dir.Fd())))
}

// checkDevice looks at a Block volume: a link to a device of exactly its size,
// full of zeros.
func checkDevice(t *testing.T, v Volume) {
	target, err := os.Readlink(v.Path)
	require.NoError(t, err)
	require.Regexp(t, "^/dev/loop[0-9]+$", target)
	require.Equal(t, strconv.FormatInt(v.SizeBytes, 10)+"\n", testroot.Run(t, "blockdev", "--getsize64", v.Path))
	require.True(t, v.EverRaw)
	data, err := os.ReadFile(v.Path)
	require.NoError(t, err)
	require.Equal(t, make([]byte, v.SizeBytes), data)
}

// checkAllocation proves that a thick image stays thick whatever its user does,
// and that a thin one gives back.
func checkAllocation(t *testing.T, n *node, v Volume) {
	if v.Backend != record.BackendLoop {
		return
	}
	image := filepath.Join(n.pools[0].Path, v.ID, record.ImageFile)
	trim := exec.Command("blkdiscard", "--force", v.Path)
	if v.VolumeMode == record.ModeFilesystem {
		big := filepath.Join(v.Path, "big")
		require.NoError(t, os.WriteFile(big, make([]byte, 16*mib), 0o600))
		testroot.Run(t, "sync", "-f", big)
		require.NoError(t, os.Remove(big))
		testroot.Run(t, "sync", "-f", v.Path)
		trim = exec.Command("fstrim", filepath.Dir(v.Path))
	} else {
		f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.Write(make([]byte, 16*mib))
		require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
	}
	full := blocks(t, image)
	err := trim.Run()
	if v.Allocation == record.AllocationThick {
		require.Error(t, err)
		require.GreaterOrEqual(t, blocks(t, image), v.SizeBytes)
		return
	}
	require.NoError(t, err)
	testroot.Run(t, "sync", "-f", image)
	require.Less(t, blocks(t, image), full-8*mib)
}

func checkGrowth(t *testing.T, n *node, k poolKind, v Volume) Volume {
	size := v.SizeBytes + 64*mib
	t.Run("grow", func(t *testing.T) {
		if v.FSType == "ext4" && !canResizeExt4() {
			t.Skip("ext4 grows only for CAP_SYS_RESOURCE, which this machine withholds; `make test-vm` runs this")
		}
		grown, err := n.store.Grow(t.Context(), v.ID, size)
		require.NoError(t, err)
		require.Equal(t, size, grown.SizeBytes)
		require.Zero(t, grown.GrowingTo)
		v = grown
		same, err := n.store.Grow(t.Context(), v.ID, size-mib)
		require.NoError(t, err)
		require.Equal(t, grown, same, "volumes do not shrink")
		require.Equal(t, "kept", marked(t, v))
		require.Equal(t, v.Owed(), n.store.Pools()[0].Promised)
		if v.VolumeMode == record.ModeBlock {
			require.Equal(t, strconv.FormatInt(size, 10)+"\n", testroot.Run(t, "blockdev", "--getsize64", v.Path))
		} else {
			var fs unix.Statfs_t
			require.NoError(t, unix.Statfs(v.Path, &fs))
			require.Greater(t, int64(fs.Blocks)*fs.Frsize, size*7/10)
		}
		if v.Enforcement != record.EnforcementNone && v.VolumeMode == record.ModeFilesystem {
			dir, err := os.Open(v.Path)
			require.NoError(t, err)
			defer dir.Close()
			// More than the former size, and not more than the new one.
			result := tenant.Run(t, tenant.User, dir, "write", "more", strconv.FormatInt(size*2, 10))
			require.Greater(t, result.Done, (size-64*mib)*8/10)
			require.LessOrEqual(t, result.Done, size)
			tenant.Run(t, tenant.User, dir, "remove", "more")
			settle(t, dir)
		}
		require.Empty(t, verify.Live(t.Context(), n.store.View()))
		_, err = n.store.Grow(t.Context(), v.ID, 1<<50)
		var full *disk.CapacityError
		require.ErrorAs(t, err, &full)
		got, err := n.store.Get(v.ID)
		require.NoError(t, err)
		require.Equal(t, v, got)
	})
	return v
}

// checkInUse holds the volume in the ways pods do, and sees it refused to be
// deleted, whole.
func checkInUse(t *testing.T, n *node, v Volume) {
	if v.VolumeMode == record.ModeBlock {
		f, err := os.Open(v.Path)
		require.NoError(t, err)
		defer f.Close()
		holder := exec.Command("sleep", "infinity")
		holder.ExtraFiles = []*os.File{f}
		require.NoError(t, holder.Start())
		require.NoError(t, f.Close())
		inUse(t, n.store.Delete(t.Context(), v.ID, purge), v1alpha1.ReasonDeviceHeld)
		require.Equal(t, "kept", marked(t, v))
		require.NoError(t, holder.Process.Kill())
		require.Error(t, holder.Wait())

		// The device's node as CSI publishes it: nobody has it open, and it
		// would lead to whatever has the number next.
		dev, err := filepath.EvalSymlinks(v.Path)
		require.NoError(t, err)
		target := filepath.Join(t.TempDir(), "device")
		require.NoError(t, os.WriteFile(target, nil, 0o600))
		ns := testroot.NewMountNamespace(t, `mount --bind "$1" "$2"`, dev, target)
		busy := inUse(t, n.store.Delete(t.Context(), v.ID, purge), v1alpha1.ReasonMounted)
		require.Contains(t, busy.By[0], target)
		require.Equal(t, "kept", marked(t, v))
		ns.Stop()
		require.NoError(t, n.store.CheckUnused(t.Context(), v.ID))
		return
	}
	target := t.TempDir()
	ns := testroot.NewMountNamespace(t, `mount --bind "$1" "$2"`, v.Path, target)
	busy := inUse(t, n.store.CheckUnused(t.Context(), v.ID), v1alpha1.ReasonMounted)
	require.Contains(t, busy.By[0], target)
	inUse(t, n.store.Delete(t.Context(), v.ID, purge), v1alpha1.ReasonMounted)
	require.Equal(t, "kept", marked(t, v))
	require.Empty(t, verify.Live(t.Context(), n.store.View()), "and it is served as before")
	ns.Stop()
	require.NoError(t, n.store.CheckUnused(t.Context(), v.ID))

	if v.Backend == record.BackendLoop {
		// A copy of the agent's own mount in a namespace that gets no word of
		// unmounts: it is named before anything is unmounted.
		ns := testroot.NewMountNamespace(t, `true`)
		inUse(t, n.store.Delete(t.Context(), v.ID, purge), v1alpha1.ReasonMounted)
		require.Equal(t, "kept", marked(t, v))
		require.Empty(t, verify.Live(t.Context(), n.store.View()))
		ns.Stop()

		// Its device open in another process, which only taking it down tells.
		// That is not tried again until the holder is gone: each try changes
		// the node's mounts, and a change of those has it tried.
		require.NoError(t, n.store.CheckUnused(t.Context(), v.ID))
		f, err := os.Open(n.store.lookup(v.ID).up.Device.Path)
		require.NoError(t, err)
		holder := exec.Command("sleep", "infinity")
		holder.ExtraFiles = []*os.File{f}
		require.NoError(t, holder.Start())
		require.NoError(t, f.Close())
		var ids []int
		for range 3 {
			busy := inUse(t, n.store.Delete(t.Context(), v.ID, purge), v1alpha1.ReasonDeviceHeld)
			require.Contains(t, busy.By[0], fmt.Sprintf("pid %d (sleep)", holder.Process.Pid))
			require.Equal(t, "kept", marked(t, v))
			require.Empty(t, verify.Live(t.Context(), n.store.View()))
			inner, err := os.Open(filepath.Dir(v.Path))
			require.NoError(t, err)
			now, err := mount.At(inner)
			require.NoError(t, errors.Join(err, inner.Close()))
			ids = append(ids, now.ID)
		}
		require.Equal(t, ids[0], ids[1], "it was taken down again")
		require.Equal(t, ids[0], ids[2], "it was taken down again")
		require.NoError(t, holder.Process.Kill())
		require.Error(t, holder.Wait())
	}
}

// mark leaves something in the volume that marked finds again.
func mark(t testing.TB, v Volume, text string) {
	t.Helper()
	name := v.Path
	if v.VolumeMode == record.ModeFilesystem {
		name = filepath.Join(v.Path, "mark")
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	require.NoError(t, err)
	_, err = fmt.Fprintf(f, "%-64s", text)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

func marked(t testing.TB, v Volume) string {
	t.Helper()
	name := v.Path
	if v.VolumeMode == record.ModeFilesystem {
		name = filepath.Join(v.Path, "mark")
	}
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	var text string
	_, err = fmt.Fscan(f, &text)
	require.NoError(t, err)
	return text
}

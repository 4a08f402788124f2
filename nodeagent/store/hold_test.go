package store

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// beginning is a volume that another process is making at this moment, as far
// as the disk tells.
func beginning(t *testing.T, pool string) string {
	t.Helper()
	at := filepath.Join(pool, record.MetaDir, record.TmpDir, "being-made-1")
	require.NoError(t, os.MkdirAll(at, 0o700))
	return at
}

func withLocks(dir string) func(*Options) { return func(o *Options) { o.LockDir = dir } }

// TestTwoProcessesOnOnePool: the second says whose the pool is, touches
// nothing, and has it once the first is gone. The disk of an idle pool can be
// unmounted all the same.
func TestTwoProcessesOnOnePool(t *testing.T) {
	d, locks := newDisk(t, "ext4"), t.TempDir()
	n := newNode(t, d.at)
	first := n.start(withLocks(locks))
	n.mustCreate(small)
	made := beginning(t, d.at)

	second := n.start(withLocks(locks))
	offline(t, n, disk.OfflineInUse)
	require.ErrorContains(t, second.Pools()[0].Offline, fmt.Sprintf("pid %d", os.Getpid()))
	require.DirExists(t, made, "what the first is making was not cleared away")
	_, err := n.create(Request{ID: "pvc-2", SizeBytes: mib, Enforcement: record.EnforcementNone})
	_, refused := Reason(err)
	require.True(t, refused, "%v", err)

	d.out(t)
	d.in(t)
	first.Close()
	online(t, n)
	require.Equal(t, []string{"pvc-1"}, n.ids())
	require.NoDirExists(t, made)
	second.Close()
}

// TestLockDiesWithItsProcess kills the process that has the lock.
func TestLockDiesWithItsProcess(t *testing.T) {
	locks := t.TempDir()
	n := newNode(t, onExt4.make(t, gib))
	uid := n.store.Pools()[0].UID
	other := exec.Command("flock", "--exclusive", "--no-fork", filepath.Join(locks, uid+".lock"), "sleep", "600")
	require.NoError(t, other.Start())
	// Until it has the lock, one of ours would be in its way.
	require.Eventually(t, func() bool {
		return exec.Command("flock", "--nonblock", filepath.Join(locks, uid+".lock"), "true").Run() != nil
	}, testPatience, testLook)
	n.start(withLocks(locks))
	offline(t, n, disk.OfflineInUse)

	require.NoError(t, other.Process.Kill())
	_ = other.Wait()
	online(t, n)
	n.store.Close()
}

// TestTwoNodesOnOneDirectory: a directory that another node has is not
// touched, and once it may be taken, the other one touches it no more.
func TestTwoNodesOnOneDirectory(t *testing.T) {
	path := onExt4.make(t, 2*gib)
	n := newNode(t, path)
	one := n.start(func(o *Options) { o.MachineID = "m1" })
	v := n.mustCreate(Request{ID: "of-node1-1", Backend: record.BackendLoop, SizeBytes: 64 * mib})
	made := beginning(t, path)
	n.reboot()

	two := n.start(func(o *Options) { o.Node, o.MachineID = "node2", "m2" })
	offline(t, n, disk.OfflineInUseElsewhere)
	off := two.Pools()[0].Offline
	require.Equal(t, record.PoolHolder{Node: "node1", MachineID: "m1"}, off.Holder)
	require.Equal(t, v.PoolUID, off.UID)
	require.DirExists(t, made)
	require.Empty(t, n.ids(), "nothing was read, attached or mounted")

	two.Expect("pool1", disk.Expectation{TakeFrom: off.Holder.String()})
	online(t, n)
	got, err := two.Get(v.ID)
	require.NoError(t, err)
	require.NoError(t, got.Unavailable)

	n.store = one
	_, err = n.create(Request{ID: "pvc-2", SizeBytes: 64 * mib})
	var elsewhere *disk.OfflineError
	require.ErrorAs(t, err, &elsewhere, "also before it has looked")
	require.Equal(t, disk.OfflineInUseElsewhere, elsewhere.Reason)
	one.Refresh(t.Context())
	offline(t, n, disk.OfflineInUseElsewhere)
	n.store = two
}

// TestAnotherMachineUnderTheSameName: who is not known to be the machine that
// had the pool does not take it by itself.
func TestAnotherMachineUnderTheSameName(t *testing.T) {
	path := onExt4.make(t, gib)
	machine := func(id string) func(*Options) { return func(o *Options) { o.MachineID = id } }
	n := newNode(t, path)
	n.start(machine("m1"))
	online(t, n)
	n.start(machine("m2"))
	offline(t, n, disk.OfflineInUseElsewhere)
	n.store.Expect("pool1", disk.Expectation{TakeFrom: disk.Anybody})
	online(t, n)
	n.start(machine("m1"))
	offline(t, n, disk.OfflineInUseElsewhere)
	n.start(machine("m2"))
	online(t, n)
}

// TestOneDirectoryUnderTwoNames: the second name is no second pool.
func TestOneDirectoryUnderTwoNames(t *testing.T) {
	path := onExt4.make(t, gib)
	link, bound := filepath.Join(t.TempDir(), "link"), t.TempDir()
	require.NoError(t, os.Symlink(path, link))
	testroot.Run(t, "mount", "--bind", path, bound)
	testroot.UnmountOnCleanup(t, bound)
	n := newNode(t, path, link, bound)
	pools := n.store.Pools()
	require.Nil(t, pools[0].Offline)
	for _, p := range pools[1:] {
		require.NotNil(t, p.Offline)
		require.Equal(t, disk.OfflineDuplicate, p.Offline.Reason)
		require.ErrorContains(t, p.Offline, path)
	}
	v := n.mustCreate(Request{ID: "pvc-1", Enforcement: record.EnforcementNone, SizeBytes: 16 * mib})
	require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)))
	n.start()
	require.Len(t, n.store.Trash(), 1)
	for _, p := range n.store.Pools() {
		require.Empty(t, p.Broken)
	}
	n.pools = n.pools[:1]
	n.start()
}

// TestSwappedDisksPutRight: two disks come up at each other's place while
// nobody knows better, and are put right one at a time.
func TestSwappedDisksPutRight(t *testing.T) {
	for _, first := range []int{0, 1} {
		t.Run(fmt.Sprintf("pool%d first", first+1), func(t *testing.T) {
			one, two := newDisk(t, "ext4"), newDisk(t, "ext4")
			n := newNode(t, one.at, two.at)
			v := [2]Volume{
				n.mustCreate(Request{ID: "pvc-1", Pool: "pool1", SizeBytes: 32 * mib, Backend: record.BackendLoop}),
				n.mustCreate(Request{ID: "pvc-2", Pool: "pool2", SizeBytes: 32 * mib, Backend: record.BackendLoop}),
			}
			mark(t, v[0], "one")
			mark(t, v[1], "two")
			n.reboot()
			one.out(t)
			two.out(t)
			places := [2]string{one.at, two.at}
			devices := [2]string{one.device, two.device}
			poolDisk{devices[0], places[1]}.in(t)
			poolDisk{devices[1], places[0]}.in(t)

			n.start() // nothing is known of the pools: each takes what is there
			require.Len(t, n.ids(), 2)
			for i := range v {
				n.store.Expect(fmt.Sprintf("pool%d", i+1), disk.Expectation{UID: v[i].PoolUID})
			}
			n.store.Refresh(t.Context())
			for _, p := range n.store.Pools() {
				require.NotNil(t, p.Offline)
				require.Equal(t, disk.OfflineSwapped, p.Offline.Reason)
			}

			n.reboot()
			testroot.Run(t, "umount", places[0])
			testroot.Run(t, "umount", places[1])
			poolDisk{devices[first], places[first]}.in(t)
			n.store.Refresh(t.Context())
			pools := n.store.Pools()
			require.Nil(t, pools[first].Offline)
			require.Empty(t, pools[first].Broken)
			poolDisk{devices[1-first], places[1-first]}.in(t)
			n.store.Refresh(t.Context())
			for i := range v {
				p := n.store.Pools()[i]
				require.Nil(t, p.Offline)
				require.Empty(t, p.Broken)
				got, err := n.store.Get(v[i].ID)
				require.NoError(t, err)
				require.NoError(t, got.Unavailable)
				require.Equal(t, p.Name, got.Pool)
			}
			require.Equal(t, "one", marked(t, v[0]))
			require.Equal(t, "two", marked(t, v[1]))
		})
	}
}

// TestAPoolThatAnotherProcessHasIsNotTouched lets another process take a pool
// whose volumes this one knows, while its disk was away: neither what is known
// nor what is asked for by id reaches the disk.
func TestAPoolThatAnotherProcessHasIsNotTouched(t *testing.T) {
	locks := t.TempDir()
	n := newNode(t, onExt4.make(t, gib))
	one := n.start(withLocks(locks))
	v := n.mustCreate(plain("pvc-1"))
	mark(t, v, "kept")
	hide(t, n.pools[0].Path, "-away", "")
	one.Refresh(t.Context())
	hide(t, n.pools[0].Path, "", "-away")
	two := n.start(withLocks(locks))
	online(t, n)
	one.Refresh(t.Context())
	require.Equal(t, disk.OfflineInUse, one.Pools()[0].Offline.Reason)

	for what, err := range map[string]error{
		"activate": call(one.Activate(t.Context(), v.ID)),
		"open":     call(one.Open(t.Context(), v.ID)),
		"grow":     call(one.Grow(t.Context(), v.ID, 2*v.SizeBytes)),
		"describe": one.SetOrigin(t.Context(), v.ID, record.Origin{ClaimName: "other"}),
		"delete":   one.Delete(t.Context(), v.ID, purge),
	} {
		var off *disk.OfflineError
		require.ErrorAs(t, err, &off, what)
		require.Equal(t, disk.OfflineInUse, off.Reason, what)
	}
	require.Equal(t, "kept", marked(t, v))
	two.Close()
	one.Refresh(t.Context())
	require.NoError(t, call(one.Activate(t.Context(), v.ID)), "it is this one's again")
	one.Close()
}

func call[T any](_ T, err error) error { return err }

// TestASecondNameOfAPoolIsNotTouched puts a pool's disk under the name of
// another one as well, after it was away: the name that has its volumes from
// before is not used for them as long as it is the second one.
func TestASecondNameOfAPoolIsNotTouched(t *testing.T) {
	one, two := onExt4.make(t, gib), t.TempDir()
	n := newNode(t, one)
	v := n.mustCreate(plain("pvc-1"))
	n.pools = poolsAt([]string{one, two})
	n.dirty = true // two names of one disk
	s := n.prepare()
	s.Expect("pool2", disk.Expectation{})
	s.Refresh(t.Context())
	hide(t, one, "-away", "")
	s.Refresh(t.Context())
	testroot.Run(t, "mount", "--bind", one, two)
	testroot.UnmountOnCleanup(t, two)
	hide(t, one, "", "-away")
	// The disk is seen at its second name first.
	path := s.pools[0].cfg.Path
	s.pools[0].cfg.Path = path + "-away"
	s.Refresh(t.Context())
	s.pools[0].cfg.Path = path
	s.Refresh(t.Context())
	require.NotNil(t, s.Pools()[0].Offline)
	require.Equal(t, disk.OfflineDuplicate, s.Pools()[0].Offline.Reason)
	got, err := s.Get(v.ID)
	require.NoError(t, err)
	if got.Pool == "pool1" {
		require.Error(t, call(s.Activate(t.Context(), v.ID)))
	} else {
		require.NoError(t, call(s.Activate(t.Context(), v.ID)))
	}
	r, err := s.pools[0].open()
	if err == nil {
		r.Close()
	}
	require.Error(t, err, "the second name is opened")
}

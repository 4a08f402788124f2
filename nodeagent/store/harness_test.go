package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// TestMain also runs what tests start in processes of their own: a tenant, or a
// store that dies.
func TestMain(m *testing.M) {
	if plan := os.Getenv(doomedEnvironment); plan != "" {
		doomed(plan)
	}
	if os.Geteuid() == 0 && os.Getenv(apartEnvironment) == "" && os.Getenv("QUARRY_TEST_TENANT") == "" {
		os.Exit(apart())
	}
	if os.Getenv(apartEnvironment) == "yes" {
		os.Setenv(apartEnvironment, "done") // for the processes that tests start
		if err := forgetOthers(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	tenant.Main(m, nil)
}

const apartEnvironment = "QUARRY_TEST_APART"

// apart runs the tests in a mount namespace of their own. Else the tests of
// other packages, which run at the same time and make mount namespaces, would
// for a while have copies of the mounts made here, and volumes would truly be
// in use.
func apart() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartEnvironment+"=yes")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig goes by the thread
	// What ends us ends the tests, and leaves us the time to clean up.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	var exit *exec.ExitError
	err := cmd.Start()
	if err == nil {
		go func() {
			for s := range ended {
				_ = cmd.Process.Signal(s)
			}
		}()
		err = cmd.Wait()
	}
	if err := sweepCutOff(); err != nil {
		fmt.Fprintln(os.Stderr, "clean up after a benchmark that was cut off:", err)
	}
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// forgetOthers lets go of the copies of other packages' mounts that came along.
func forgetOthers() error {
	mounts, err := mount.MountedBelow(filepath.Clean(os.TempDir()))
	for _, m := range mounts {
		if m.Mountpoint != filepath.Clean(os.TempDir()) {
			err = errors.Join(err, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
		}
	}
	return err
}

// poolKind is a filesystem that pools are tested on.
type poolKind struct {
	name, fstype string
	// quota is the kind that volumes in directories get there; empty: none.
	quota string
}

var (
	onExt4    = poolKind{"ext4", "ext4", ""}
	onXFS     = poolKind{"xfs", "xfs", ""}
	onBtrfs   = poolKind{"btrfs", "btrfs", record.QuotaBtrfs}
	onExt4Prj = poolKind{"ext4 with project quotas", "ext4", record.QuotaProject}
	onXFSPrj  = poolKind{"xfs with project quotas", "xfs", record.QuotaProject}

	allPools   = []poolKind{onExt4, onXFS, onBtrfs, onExt4Prj, onXFSPrj}
	quotaPools = []poolKind{onBtrfs, onExt4Prj, onXFSPrj}
)

// make makes the filesystem, of size bytes, and returns where it is mounted.
// What the kernel cannot do skips the test, unless QUARRY_TEST_REQUIRE says
// that it must.
func (k poolKind) make(t testing.TB, size int64) string {
	t.Helper()
	testroot.RequireRoot(t)
	if k.quota == record.QuotaBtrfs {
		k.require(t, "simple-quota", kernelBefore(t, 6, 7), "btrfs simple quotas (Linux 6.7)")
	}
	if k.quota != record.QuotaProject {
		return testroot.NewFilesystem(t, k.fstype, size)
	}
	device := testroot.NewLoop(t, testroot.NewImage(t, size).Name())
	if k.fstype == "ext4" {
		testroot.Run(t, "mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", device)
	} else {
		testroot.Mkfs(t, k.fstype, device)
	}
	dir := t.TempDir()
	out, err := exec.Command("mount", "-o", "prjquota", device, dir).CombinedOutput()
	k.require(t, "project-quota", err != nil, "project quotas for "+k.fstype+": "+strings.TrimSpace(string(out)))
	testroot.UnmountOnCleanup(t, dir)
	return dir
}

func (k poolKind) require(t testing.TB, feature string, missing bool, what string) {
	t.Helper()
	switch {
	case !missing:
	case strings.Contains(os.Getenv("QUARRY_TEST_REQUIRE"), feature):
		t.Fatalf("this kernel must have %s", what)
	default:
		t.Skipf("this kernel does not have %s; `make test-vm` runs this on one that does", what)
	}
}

func kernelBefore(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	require.NoError(t, err)
	return a < major || a == major && b < minor
}

// node is a machine with pools. Its stores come and go as the agent's process
// does.
type node struct {
	t       testing.TB
	pools   []config.Pool
	devices string // in the place of /run/quarry/dev
	store   *Store
	stores  []*Store // all there were
	// dirty: what the test did is meant to be found by Verify.
	dirty bool
}

// newNode makes a node with a pool at each path, named pool1, pool2 and so on,
// and starts its store. When the test ends everything must hold; then all is
// taken down.
func newNode(t testing.TB, paths ...string) *node {
	t.Helper()
	n := &node{t: t, pools: poolsAt(paths), devices: filepath.Join(t.TempDir(), "dev")}
	t.Cleanup(func() {
		if !t.Failed() && !n.dirty {
			n.check()
		}
		n.takeDown()
	})
	n.start()
	return n
}

// poolsAt is a node's configuration.
func poolsAt(paths []string) []config.Pool {
	var pools []config.Pool
	for i, path := range paths {
		c, err := config.Default("/volumes")
		if err != nil {
			panic(err)
		}
		p := c.Pools[0]
		p.Name, p.Path = fmt.Sprintf("pool%d", i+1), path
		if p.Reserve, err = config.ParseReserve("0%"); err != nil {
			panic(err)
		}
		p.EnableQuota = true
		pools = append(pools, p)
	}
	return pools
}

func (n *node) options() Options {
	return Options{Node: "node1", Pools: n.pools, DeviceDir: n.devices, ByClaimIndex: true,
		Log: slog.New(slog.NewTextHandler(n.t.Output(), nil))}
}

// start is the start of the agent's process; the one before is gone without a
// word.
func (n *node) start(change ...func(*Options)) *Store {
	n.t.Helper()
	n.prepare(change...)
	n.store.Refresh(context.Background())
	return n.store
}

// prepare is start up to where the disks are looked at.
func (n *node) prepare(change ...func(*Options)) *Store {
	o := n.options()
	for _, f := range change {
		f(&o)
	}
	n.store = New(o)
	n.stores = append(n.stores, n.store)
	for _, p := range n.pools {
		n.store.Expect(p.Name, disk.Expectation{MayCreate: true})
	}
	return n.store
}

// reboot takes away what a reboot does: mounts, loop devices, and what is under
// /run.
func (n *node) reboot() {
	n.t.Helper()
	n.takeDown()
}

func (n *node) takeDown() {
	n.settle()
	for _, p := range n.pools {
		mounts, err := mount.MountedBelow(p.Path)
		if err != nil {
			n.t.Errorf("take the node down: %v", err)
		}
		for _, m := range mounts {
			if m.Mountpoint == p.Path {
				continue
			}
			if err := testroot.Unmount(m.Mountpoint); err != nil {
				n.t.Errorf("take the node down: unmount %s: %v", m.Mountpoint, err)
			}
		}
		devices, err := loop.List()
		if err != nil {
			n.t.Errorf("take the node down: %v", err)
		}
		for _, d := range devices {
			if strings.HasPrefix(d.BackingPath, p.Path+"/") {
				if err := loop.DetachBacking(context.Background(), d); err != nil {
					n.t.Errorf("take the node down: %v", err)
				}
			}
		}
	}
	if err := os.RemoveAll(n.devices); err != nil {
		n.t.Errorf("take the node down: %v", err)
	}
}

// settle waits for what the node's stores do in the background: what they bring
// up after the node was taken down would stay.
func (n *node) settle() {
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		for _, s := range n.stores {
			s.background.Wait()
		}
	}()
	select {
	case <-settled:
	case <-time.After(testPatience):
		n.t.Errorf("take the node down: its store has not come to rest")
	}
}

// check asserts that everything holds: on the disks, in the kernel, and in what
// the store keeps in memory.
func (n *node) check() {
	n.t.Helper()
	require.NoError(n.t, n.store.Drain(context.Background()))
	require.Empty(n.t, verify.Live(context.Background(), n.store.View()))
	promised := map[*filesystemSpace]map[string]int64{}
	for _, p := range n.store.pools {
		_, space, err := p.state()
		if err != nil {
			continue
		}
		if promised[space] == nil {
			promised[space] = map[string]int64{}
		}
		in, err := disk.Inspect(p.cfg.Path)
		require.NoError(n.t, err)
		for _, v := range in.Volumes {
			promised[space][p.key(v.ID)] = v.Owed()
		}
		for _, e := range in.Trash {
			promised[space][p.key(e.Entry)] = e.Volume.Owed()
		}
		known := map[string]bool{}
		for _, v := range n.store.List() {
			known[v.ID] = v.Pool == p.name() || known[v.ID]
		}
		for _, v := range in.Volumes {
			require.True(n.t, known[v.ID], "%s is on disk and not known", v.ID)
		}
	}
	for space, want := range promised {
		require.Equal(n.t, want, space.ledger.Promises(), "the ledger of %s", space.key)
		require.Equal(n.t, sum(want), space.ledger.Promised())
	}
}

func sum(m map[string]int64) (total int64) {
	for v := range maps.Values(m) {
		total += v
	}
	return total
}

func (n *node) create(r Request) (Volume, error) {
	adm, err := n.store.Admit(n.t.Context(), r)
	if err != nil {
		return Volume{}, err
	}
	return n.store.Create(n.t.Context(), adm[0])
}

func (n *node) mustCreate(r Request) Volume {
	n.t.Helper()
	v, err := n.create(r)
	require.NoError(n.t, err)
	return v
}

func (n *node) ids() []string {
	var ids []string
	for _, v := range n.store.List() {
		ids = append(ids, v.ID)
	}
	return ids
}

var purge = record.Deletion{OnDelete: "purge"}

func keep(seconds int64) record.Deletion {
	return record.Deletion{OnDelete: "trash", RetentionSeconds: seconds}
}

// shape is a way to carve a volume.
type shape struct {
	name string
	Request
	// here reports whether pools of a kind can carve it.
	here func(poolKind) bool
}

func anywhere(poolKind) bool         { return true }
func withQuota(k poolKind) bool      { return k.quota != "" }
func projectOnly(k poolKind) bool    { return k.quota == record.QuotaProject }
func withoutProject(k poolKind) bool { return k.quota != record.QuotaProject }

// minimum sizes, in bytes, that leave room for the tests' files.
var sizes = map[string]int64{"ext4": 32 * mib, "xfs": 304 * mib, "btrfs": 256 * mib}

func shapes() []shape {
	var all []shape
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		for _, allocation := range []string{record.AllocationThick, record.AllocationThin} {
			all = append(all, shape{"loop " + fstype + " " + allocation, Request{
				Backend: record.BackendLoop, FSType: fstype, Allocation: allocation, SizeBytes: sizes[fstype],
			}, withoutProject})
		}
	}
	for _, allocation := range []string{record.AllocationThick, record.AllocationThin} {
		all = append(all, shape{"block " + allocation, Request{
			VolumeMode: record.ModeBlock, Allocation: allocation, SizeBytes: 32 * mib,
		}, withoutProject})
	}
	return append(all,
		shape{"directory", Request{Backend: record.BackendDirectory, SizeBytes: 16 * mib}, withQuota},
		shape{"directory with inodes", Request{Backend: record.BackendDirectory, SizeBytes: 16 * mib, Inodes: 50},
			projectOnly},
		shape{"directory without quota", Request{Backend: record.BackendDirectory, Enforcement: record.EnforcementNone,
			SizeBytes: 16 * mib}, anywhere},
	)
}

// forEachShape runs a test on a new node for each way to carve a volume on each
// kind of pool.
func forEachShape(t *testing.T, poolSize int64, test func(t *testing.T, n *node, k poolKind, r Request)) {
	for _, k := range allPools {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, poolSize)
			for _, sh := range shapes() {
				if !sh.here(k) {
					continue
				}
				t.Run(sh.name, func(t *testing.T) {
					r := sh.Request
					r.ID = "pvc-1"
					test(t, newNode(t, path), k, r)
				})
			}
		})
	}
}

func blocks(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// used is how many bytes of a filesystem are taken.
func used(t testing.TB, path string) int64 {
	t.Helper()
	d, err := os.Open(path)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, unix.Syncfs(int(d.Fd())))
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	return int64(st.Blocks-st.Bfree) * st.Frsize
}

func canResizeExt4() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil &&
		data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

func contains(findings []verify.Finding, what string) bool {
	return slices.ContainsFunc(findings, func(f verify.Finding) bool { return strings.Contains(f.What, what) })
}

func inUse(t testing.TB, err error, reason string) *backend.InUseError {
	t.Helper()
	var busy *backend.InUseError
	require.True(t, errors.As(err, &busy), "%v", err)
	require.Equal(t, reason, busy.Reason)
	return busy
}

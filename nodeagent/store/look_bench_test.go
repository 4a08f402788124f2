package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// benchVolumesEnvironment says how many volumes BenchmarkLook makes, each of
// which takes a loop device.
const benchVolumesEnvironment = "QUARRY_BENCH_LOOK_VOLUMES"

// benchSetUp is how long making the volumes may take. It ends the benchmark in
// order, which go test's own time does not.
const benchSetUp = 8 * time.Minute

// cpuTime is how long this process has been on a CPU, in user and kernel mode.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLook measures what a look at 1,000 volumes takes: nine in ten are
// ext4 images, which are mounted, the others Block. The share of a core is that
// of one look every LookEvery; it is to be below 1%.
func BenchmarkLook(b *testing.B) {
	testroot.RequireRoot(b)
	volumes := 1000
	if text := os.Getenv(benchVolumesEnvironment); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(b, err)
		volumes = n
	}
	n := newNode(b, benchDisk(b, "ext4", 24*gib))
	n.dirty = true // each of them is looked at by the benchmark, once more would take long
	ctx, cancel := context.WithTimeout(b.Context(), benchSetUp)
	defer cancel()
	making, ctx := errgroup.WithContext(ctx)
	making.SetLimit(8)
	for i := range volumes {
		r := Request{ID: fmt.Sprintf("pvc-%d", i), Backend: record.BackendLoop, FSType: "ext4",
			Allocation: record.AllocationThin, SizeBytes: 16 * mib}
		if i%10 == 0 {
			r = Request{ID: r.ID, VolumeMode: record.ModeBlock, Allocation: record.AllocationThin, SizeBytes: 4 * mib}
		}
		making.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			adm, err := n.store.Admit(ctx, r)
			if err != nil {
				return err
			}
			_, err = n.store.Create(ctx, adm[0])
			return err
		})
	}
	require.NoError(b, making.Wait())
	require.NoError(b, n.store.Look(b.Context()))
	before := cpuTime(b)
	for b.Loop() {
		require.NoError(b, n.store.Look(b.Context()))
	}
	look := (cpuTime(b) - before) / time.Duration(b.N)
	b.ReportMetric(float64(volumes), "volumes")
	b.ReportMetric(float64(look.Microseconds()), "cpu-µs/look")
	b.ReportMetric(100*look.Seconds()/LookEvery.Seconds(), "%core")
	require.Empty(b, n.store.Unavailable())
}

// benchDir is where the benchmark's disk lies, in the same place each time:
// what a run that was cut off leaves is found by the next.
func benchDir() string { return filepath.Join(os.TempDir(), "quarry-bench-look") }

// benchDisk makes a filesystem and mounts it. One benchmark runs at a time.
func benchDisk(b *testing.B, fstype string, size int64) string {
	b.Helper()
	dir := benchDir()
	at, image := filepath.Join(dir, "pool"), filepath.Join(dir, "disk.img")
	require.NoError(b, os.MkdirAll(at, 0o700))
	lock, err := lockBench(dir)
	require.NoError(b, err, "another benchmark has %s", dir)
	b.Cleanup(func() { lock.Close() })
	b.Cleanup(func() { require.NoError(b, sweepBench(dir)) })
	require.NoError(b, sweepBench(dir))
	require.NoError(b, os.MkdirAll(at, 0o700))
	f, err := os.Create(image)
	require.NoError(b, err)
	defer f.Close()
	require.NoError(b, f.Truncate(size))
	testroot.Mkfs(b, fstype, image)
	testroot.Run(b, "mount", testroot.Losetup(b, image), at)
	return at
}

func lockBench(dir string) (*os.File, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// sweepCutOff takes away what a benchmark left that did not come to its end. It
// is called by the process that started the one that was cut off; what that
// could not do the next one does.
func sweepCutOff() error {
	lock, err := lockBench(benchDir())
	if err != nil {
		return nil // there is nothing, or it is another's that goes on
	}
	defer lock.Close()
	return sweepBench(benchDir())
}

// sweepBench takes away what a run that was cut off left: the loop devices over
// images on its disk, which are known by the disk's own device and not by a
// path, as the mount that they were opened by ended with the run; then the
// disk's device and file. Mounts are gone with the run's mount namespace.
func sweepBench(dir string) error {
	image := filepath.Join(dir, "disk.img")
	devices, err := loop.List()
	if err != nil {
		return err
	}
	ctx := context.Background()
	for _, disk := range devices {
		if disk.BackingPath != image {
			continue
		}
		for _, d := range devices {
			if d.Backing.Dev != unix.Mkdev(disk.Dev.Major, disk.Dev.Minor) {
				continue
			}
			if err := detachWhenFree(ctx, d); err != nil {
				return err
			}
		}
		if err := unix.Unmount(filepath.Join(dir, "pool"), unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL &&
			err != unix.ENOENT {
			return err
		}
		if err := detachWhenFree(ctx, disk); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// detachWhenFree waits for the kernel to have unmounted what a process that
// ended had mounted, which it does after that.
func detachWhenFree(ctx context.Context, d loop.Device) error {
	for end := time.Now().Add(testPatience); ; time.Sleep(testLook) {
		err := loop.DetachBacking(ctx, d)
		if busy := (*loop.BusyError)(nil); !errors.As(err, &busy) || time.Now().After(end) {
			return err
		}
	}
}

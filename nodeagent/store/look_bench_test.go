package store

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// cpuTime is how long this process has been on a CPU, in user and kernel mode.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLook measures what a look at 1,000 volumes takes: half of them ext4 images, which are mounted, half Block. The share
// of a core is that of one look every LookEvery; it is to be below 1%.
func BenchmarkLook(b *testing.B) {
	const volumes = 1000
	n := newNode(b, onExt4.make(b, 24*gib))
	n.dirty = true // each of them is looked at by the benchmark, once more would take long
	for i := range volumes {
		r := Request{ID: fmt.Sprintf("pvc-%d", i), VolumeMode: record.ModeBlock, Allocation: record.AllocationThin, SizeBytes: 4 * mib}
		if i%2 == 0 {
			r = Request{ID: r.ID, Backend: record.BackendLoop, FSType: "ext4", Allocation: record.AllocationThin, SizeBytes: 16 * mib}
		}
		n.mustCreate(r)
	}
	require.NoError(b, n.store.Look(b.Context()))
	before := cpuTime(b)
	for b.Loop() {
		require.NoError(b, n.store.Look(b.Context()))
	}
	look := (cpuTime(b) - before) / time.Duration(b.N)
	b.ReportMetric(float64(look.Microseconds()), "cpu-µs/look")
	b.ReportMetric(100*look.Seconds()/LookEvery.Seconds(), "%core")
	require.Empty(b, n.store.Unavailable())
}

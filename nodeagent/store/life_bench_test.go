package store

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// childrenTime is how long the programs that this process started were on a
// CPU.
func childrenTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLife measures what making and deleting a volume takes, one after the
// other and many at once, with an agent's watcher at work: wall time, processor
// time of the process, and of mkfs.
func BenchmarkLife(b *testing.B) {
	testroot.RequireRoot(b)
	kinds := []struct {
		name, fstype string
		request      Request
	}{
		{"directory", "ext4", Request{Backend: record.BackendDirectory, Enforcement: record.EnforcementNone,
			SizeBytes: 64 * mib}},
		{"btrfs", "btrfs", Request{Backend: record.BackendDirectory, SizeBytes: 64 * mib}},
		{"image", "ext4", Request{Backend: record.BackendLoop, FSType: "ext4", SizeBytes: 64 * mib}},
		{"thin", "ext4", Request{Backend: record.BackendLoop, FSType: "ext4", Allocation: record.AllocationThin,
			SizeBytes: 64 * mib}},
		{"block", "ext4", Request{VolumeMode: record.ModeBlock, SizeBytes: 64 * mib}},
	}
	for _, kind := range kinds {
		for _, atOnce := range []int{1, 12} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, atOnce), func(b *testing.B) {
				n := newNode(b, benchDisk(b, kind.fstype, 40*gib))
				n.dirty = true
				ctx, cancel := context.WithCancel(b.Context())
				agent, ctx := errgroup.WithContext(ctx)
				agent.Go(func() error { return n.store.Watch(ctx) })
				agent.Go(func() error { n.store.Run(ctx); return nil })
				defer func() {
					require.NoError(b, n.store.Drain(ctx))
					cancel()
					require.NoError(b, agent.Wait())
				}()
				each := func(f func(id string) error) (wall, self, children time.Duration) {
					began, s, c := time.Now(), cpuTime(b), childrenTime(b)
					work, _ := errgroup.WithContext(b.Context())
					work.SetLimit(atOnce)
					for i := range b.N {
						work.Go(func() error { return f(fmt.Sprintf("pvc-%d", i)) })
					}
					require.NoError(b, work.Wait())
					return time.Since(began), cpuTime(b) - s, childrenTime(b) - c
				}
				report := func(what string, wall, self, children time.Duration) {
					for unit, d := range map[string]time.Duration{"wall": wall, "self": self, "children": children} {
						b.ReportMetric(float64(d.Microseconds())/float64(b.N), what+"-"+unit+"-µs")
					}
				}
				wall, self, children := each(func(id string) error {
					r := kind.request
					r.ID = id
					adm, err := n.store.Admit(b.Context(), r)
					if err != nil {
						return err
					}
					_, err = n.store.Create(b.Context(), adm[0])
					return err
				})
				report("make", wall, self, children)
				wall, self, children = each(func(id string) error {
					return n.store.Delete(b.Context(), id, record.Deletion{})
				})
				report("delete", wall, self, children)
			})
		}
	}
}

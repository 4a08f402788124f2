package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// crashShapes are the ways of carving that differ in the steps they take.
func crashShapes() map[string]struct {
	on poolKind
	Request
} {
	type shape = struct {
		on poolKind
		Request
	}
	return map[string]shape{
		"loop": {onExt4, Request{FSType: "xfs", SizeBytes: sizes["xfs"],
			Allocation: record.AllocationThin}},
		"loop on xfs":    {onXFS, Request{FSType: "ext4", SizeBytes: sizes["ext4"]}},
		"block on btrfs": {onBtrfs, Request{VolumeMode: record.ModeBlock, SizeBytes: 16 * mib}},
		"subvolume":      {onBtrfs, Request{Backend: record.BackendDirectory, SizeBytes: 16 * mib}},
		"ext4 project":   {onExt4Prj, Request{Backend: record.BackendDirectory, SizeBytes: 16 * mib}},
		"xfs project":    {onXFSPrj, Request{Backend: record.BackendDirectory, SizeBytes: 16 * mib}},
		"without any quota": {onExt4, Request{Backend: record.BackendDirectory, Enforcement: record.EnforcementNone,
			SizeBytes: 16 * mib}},
	}
}

// crashes are the operations, each with the state it begins from.
var crashes = []struct {
	op string
	// begin says what there is before: nothing, a volume, or one in the trash.
	begin string
}{
	{opCreate, "nothing"}, {opStart, "volume"}, {opGrow, "volume"},
	{opDelete, "volume"}, {opRestore, "trash"}, {opFree, "purged"},
	{opDescribe, "volume"},
}

func forEachCrash(t *testing.T, test func(t *testing.T, n *node, op, begin string, r Request)) {
	for name, sh := range crashShapes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := sh.on.make(t, 2*gib)
			for _, c := range crashes {
				t.Run(c.op, func(t *testing.T) {
					r := sh.Request
					r.ID = "pvc-1"
					r.Origin = record.Origin{ClaimNamespace: "default", ClaimName: "data"}
					if c.op == opGrow && r.FSType == "ext4" && !canResizeExt4() {
						t.Skip(
							"ext4 grows only for CAP_SYS_RESOURCE, which this machine withholds; `make test-vm` runs this")
					}
					test(t, newNode(t, path), c.op, c.begin, r)
				})
			}
		})
	}
}

// begin makes the state that an operation begins from.
func begin(t *testing.T, n *node, state string, r Request) {
	t.Helper()
	if state == "nothing" {
		return
	}
	mark(t, n.mustCreate(r), "kept")
	switch state {
	case "trash":
		require.NoError(t, deleteWhenFree(t.Context(), n.store, r.ID, keep(3600)))
	case "purged":
		require.NoError(t, deleteWhenFree(t.Context(), n.store, r.ID, purge))
	}
}

// whole asserts that the volume is there as it should be, or not there at all,
// and returns which.
func whole(t *testing.T, n *node, op string, r Request, size int64) bool {
	t.Helper()
	v, err := n.store.Get(r.ID)
	if err != nil {
		var notFound *NotFoundError
		require.ErrorAs(t, err, &notFound)
		require.Contains(t, []string{opCreate, opDelete, opRestore, opFree}, op, "nobody asked for it to go away")
		if op == opDelete || op == opRestore {
			require.Len(t, n.store.Trash(), 1)
			_, err = n.store.Restore(t.Context(), r.ID)
			require.NoError(t, err)
			v, err = n.store.Get(r.ID)
			require.NoError(t, err)
			require.Equal(t, "kept", marked(t, v))
			return true
		}
		return false
	}
	require.NotEqual(t, opFree, op)
	require.NoError(t, v.Unavailable)
	if op == opGrow {
		require.Contains(t, []int64{r.SizeBytes, size}, v.SizeBytes)
		require.Zero(t, v.GrowingTo)
	}
	if op == opCreate {
		mark(t, v, "new")
		require.Equal(t, "new", marked(t, v))
	} else {
		require.Equal(t, "kept", marked(t, v))
	}
	return true
}

// clear takes everything away again.
func clearAll(t *testing.T, n *node, r Request) {
	t.Helper()
	require.NoError(t, deleteWhenFree(t.Context(), n.store, r.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	n.check()
	require.Empty(t, n.ids())
	require.Empty(t, n.store.Trash())
}

// TestKilledAtEveryStep kills the process before each step of each operation.
// The next one must find the volume whole or not at all, and nothing may leak.
func TestKilledAtEveryStep(t *testing.T) {
	forEachCrash(t, func(t *testing.T, n *node, op, state string, r Request) {
		size := r.SizeBytes + 64*mib
		for step := 1; ; step++ {
			begin(t, n, state, r)
			if op == opStart {
				n.reboot()
			}
			d := doom{Pools: []string{n.pools[0].Path}, Devices: n.devices, Op: op, Request: r, Size: size, Step: step}
			killedBefore := d.run(t)
			n.start()
			require.NoError(t, n.store.Drain(t.Context()), "killed before %q", killedBefore)
			require.Empty(t, verify.Live(t.Context(), n.store.View()), "killed before %q", killedBefore)
			there := whole(t, n, op, r, size)
			if killedBefore == "" {
				require.True(t, step > 1 || op == opStart, "no step was taken")
				require.Equal(t, op != opFree, there)
			}
			clearAll(t, n, r)
			if killedBefore == "" {
				t.Logf("%s: killed at %d steps", op, step-1)
				return
			}
		}
	})
}

// TestEveryStepFails lets each step of each operation fail once. The operation
// must have left nothing, or be repeatable.
func TestEveryStepFails(t *testing.T) {
	forEachCrash(t, func(t *testing.T, n *node, op, state string, r Request) {
		size := r.SizeBytes + 64*mib
		for fail := 1; ; fail++ {
			begin(t, n, state, r)
			if op == opStart {
				n.reboot()
			}
			var failed string
			steps := 0
			armed := op == opStart
			n.start(func(o *Options) {
				o.Fault = func(step string) error {
					if !armed {
						return nil
					}
					if steps++; steps != fail {
						return nil
					}
					failed = step
					return errors.New("injected")
				}
			})
			armed = true
			err := do(t.Context(), n.store, op, r, size)
			armed = false
			if op == opCreate && err != nil && len(n.ids()) == 0 {
				require.NoError(t, n.store.Drain(t.Context()))
				n.check()
			}
			require.NoError(t, do(t.Context(), n.store, op, r, size), "again after %q failed", failed)
			n.check()
			require.Equal(t, op != opFree, whole(t, n, op, r, size), "after %q failed", failed)
			clearAll(t, n, r)
			if failed == "" {
				require.NoError(t, err)
				return
			}
		}
	})
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], strings.TrimSpace(s[i+len(sep):]), true
	}
	return s, "", false
}

package store

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// The tests below run in a virtual machine whose power is cut (test/vm). The
// first boot prepares a pool on the machine's disk, prints powerReady and goes
// on with an operation until the power goes; the second boot looks at what is
// left.
const (
	powerEnvironment = "QUARRY_TEST_POWER" // <filesystem>/<operation>
	powerReady       = "power: ready"
)

func powerPlan(t *testing.T) (device, fstype, op string) {
	t.Helper()
	plan := os.Getenv(powerEnvironment)
	if plan == "" {
		t.Skip("it wants a machine whose power can be cut: `make test-vm` runs it")
	}
	fstype, op, _ = strings.Cut(plan, "/")
	device, _, _ = strings.Cut(os.Getenv("QUARRY_MACHINE_DISKS"), ":")
	require.NotEmpty(t, device)
	return device, fstype, op
}

// powerVolumes are the volumes of a power cut: one by each way of keeping its
// size.
func powerVolumes(fstype string) []Request {
	return []Request{
		{ID: "loop", SizeBytes: sizes["ext4"], FSType: "ext4", Origin: record.Origin{ClaimNamespace: "default",
			ClaimName: "data"}},
		{ID: "directory", SizeBytes: 16 * mib},
		{ID: "raw", SizeBytes: 16 * mib, VolumeMode: record.ModeBlock},
	}
}

func powerNode(t *testing.T, device string) *node {
	t.Helper()
	path := t.TempDir()
	if out, err := exec.Command("mount", "-o", "prjquota", device, path).CombinedOutput(); err != nil {
		t.Fatalf("mount %s: %v: %s", device, err, out)
	}
	testroot.UnmountOnCleanup(t, path)
	return newNode(t, path)
}

func TestPowerIsCut(t *testing.T) {
	device, fstype, op := powerPlan(t)
	if fstype == "ext4" {
		testroot.Run(t, "mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", device)
	} else {
		testroot.Mkfs(t, fstype, device)
	}
	n := powerNode(t, device)
	for _, r := range powerVolumes(fstype) {
		if op == opCreate {
			continue
		}
		mark(t, n.mustCreate(r), "kept")
	}
	if op == opFree {
		for _, r := range powerVolumes(fstype) {
			require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
		}
	}
	unix.Sync()
	fmt.Println(powerReady)
	for round := int64(1); ; round++ {
		for _, r := range powerVolumes(fstype) {
			require.NoError(t, do(t.Context(), n.store, op, r, r.SizeBytes+round*4*mib))
			if op == opDelete {
				require.NoError(t, do(t.Context(), n.store, opRestore, r, 0))
			}
			if op == opCreate && round > 1 {
				require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
				require.NoError(t, n.store.Drain(t.Context()))
			}
		}
		if op == opFree {
			for _, r := range powerVolumes(fstype) {
				n.mustCreate(r)
				require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
			}
		}
	}
}

func TestAfterThePowerWasCut(t *testing.T) {
	device, fstype, op := powerPlan(t)
	n := powerNode(t, device)
	require.Nil(t, n.store.Pools()[0].Offline)
	require.Empty(t, n.store.Pools()[0].Broken)
	for _, v := range n.store.List() {
		require.NoError(t, v.Unavailable, v.ID)
	}
	n.check()
	for _, r := range powerVolumes(fstype) {
		v, err := n.store.Get(r.ID)
		if err != nil && op == opDelete {
			v, err = n.store.Restore(t.Context(), r.ID)
			require.NoError(t, err)
		}
		if err != nil {
			require.Contains(t, []string{opCreate, opFree}, op, "%s is gone", r.ID)
			v = n.mustCreate(r)
		} else {
			require.NoError(t, v.Unavailable)
		}
		if op == opDelete || op == opGrow {
			require.Equal(t, "kept", marked(t, v))
		}
		mark(t, v, "after")
		require.Equal(t, "after", marked(t, v))
		t.Logf("%s is there, of %d bytes", r.ID, v.SizeBytes)
	}
	n.check()
	for _, r := range powerVolumes(fstype) {
		require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
	}
	n.check()
	require.Zero(t, n.store.Pools()[0].Promised)
}

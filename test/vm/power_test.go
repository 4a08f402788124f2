package vm_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/quarry-storage/quarry/test/machine"
)

// powerCut is one cut: at the given write of an operation, with what a disk's
// cache may make of it (machine.Cut.Seed).
type powerCut struct {
	filesystem, operation string
	writes                int
	seed                  uint64
}

// TestPowerCuts cuts the power while volumes are made, deleted and grown, and
// looks at the second boot whether each is there whole or not at all and
// nothing leaked (nodeagent/store/power_test.go). QUARRY_POWER_SEED repeats the
// random ones.
func TestPowerCuts(t *testing.T) {
	needRoot(t)
	seed := rand.Uint64()
	if text := os.Getenv("QUARRY_POWER_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("QUARRY_POWER_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	cuts := []powerCut{
		{"ext4", "create", 40, 0}, {"xfs", "create", 60, 1}, {"ext4", "delete", 25, 2}, {"xfs", "grow", 30, 3},
	}
	for _, op := range []string{"create", "delete", "grow", "free"} {
		fs := []string{"ext4", "xfs"}[random.IntN(2)]
		cuts = append(cuts, powerCut{fs, op, 1 + random.IntN(250), random.Uint64()})
	}
	bin := binaries(t)
	slots := make(chan struct{}, atOnce)
	for _, c := range cuts {
		t.Run(fmt.Sprintf("%s/%s at write %d, seed %d", c.filesystem, c.operation, c.writes, c.seed),
			func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				c.run(t, bin)
			})
	}
}

func (c powerCut) run(t *testing.T, bin string) {
	disk := machine.Disk{Path: filepath.Join(t.TempDir(), "disk.img"), Size: 768 << 20, Volatile: true}
	boot := func(test string, cut machine.Cut) (string, int, error) {
		var out bytes.Buffer
		status, err := machine.Run(t.Context(), machine.Config{
			Command: []string{filepath.Join(bin, "store.test"), "-test.v", "-test.run", "^" + test + "$"},
			Env:     append(os.Environ(), "QUARRY_TEST_POWER="+c.filesystem+"/"+c.operation),
			Stdout:  &out, Stderr: &out, Disks: []machine.Disk{disk}, Cut: cut,
		})
		return out.String(), status, err
	}
	out, status, err := boot("TestPowerIsCut", machine.Cut{On: "power: ready", Writes: c.writes, Seed: c.seed})
	if !errors.Is(err, machine.ErrCut) {
		t.Fatalf("the first boot was to be cut: exit status %d, %v\n%s", status, err, failures(out))
	}
	disk.Volatile = false
	out, status, err = boot("TestAfterThePowerWasCut", machine.Cut{})
	if err != nil || status != 0 {
		t.Fatalf("after the cut: exit status %d, %v\n%s", status, err, failures(out))
	}
}

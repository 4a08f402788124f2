package record

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOwed says what a pool keeps for a volume.
func TestOwed(t *testing.T) {
	cases := []struct {
		name string
		rec  Volume
		want int64
	}{
		{"thick image", Volume{Backend: BackendLoop, Allocation: AllocationThick, SizeBytes: 7}, 7},
		{"thin image", Volume{Backend: BackendLoop, Allocation: AllocationThin, SizeBytes: 7}, 7},
		{"image without enforcement", Volume{Backend: BackendLoop, Enforcement: EnforcementNone, SizeBytes: 7}, 7},
		{"growing", Volume{Backend: BackendLoop, SizeBytes: 7, GrowingTo: 9}, 9},
		{"directory", Volume{Backend: BackendDirectory, QuotaKind: QuotaBtrfs, SizeBytes: 7}, 7},
		{"directory without a limit", Volume{Backend: BackendDirectory, SizeBytes: 7, GrowingTo: 9}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.rec.Owed()) })
	}
}

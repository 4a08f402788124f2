package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

func labelsOf(n int) map[string]string {
	labels := map[string]string{}
	for i := range n {
		labels[fmt.Sprintf("a%05d", i)] = strings.Repeat("x", 63)
	}
	return labels
}

// TestManyLabels makes a volume for a claim with a megabyte of labels: it can
// be read again, and deleted.
func TestManyLabels(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(Request{ID: "pvc-1", Enforcement: record.EnforcementNone, SizeBytes: 64 * mib,
		Origin: record.Origin{ClaimNamespace: "ns", ClaimName: "c", ClaimLabels: labelsOf(12_600)}})
	require.Len(t, v.Origin.ClaimLabels, v1alpha1.MaxClaimLabels)
	require.Equal(t, 12_600-v1alpha1.MaxClaimLabels, v.Origin.ClaimLabelsLeftOut)
	s := n.start()
	got, err := s.Get(v.ID)
	require.NoError(t, err)
	require.Equal(t, v.Origin, got.Origin)
	require.NoError(t, s.Delete(t.Context(), v.ID, purge))
}

// TestRecordThatHasNoRoom refuses what would make a record that is too large,
// and leaves nothing.
func TestRecordThatHasNoRoom(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	_, err := n.create(Request{ID: "pvc-1", Enforcement: record.EnforcementNone, SizeBytes: 64 * mib,
		Origin: record.Origin{Parameters: map[string]string{"a": strings.Repeat("x", record.MaxSize)}}})
	reason, refused := Reason(err)
	require.True(t, refused, err)
	require.Equal(t, v1alpha1.ReasonInvalidOptions, reason)
	require.Zero(t, n.store.Pools()[0].Promised)
	require.Empty(t, n.ids())
}

// TestLargeRecordOfAnEarlierVersion has a record of 2 MiB on the disk, as it
// was written before records had a bound: the volume is there, it is reported,
// and it can be deleted.
func TestLargeRecordOfAnEarlierVersion(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	n.dirty = true
	v := n.mustCreate(Request{ID: "pvc-1", Enforcement: record.EnforcementNone, SizeBytes: 64 * mib})
	old := v.Volume
	old.Origin.ClaimLabels = labelsOf(26_000)
	file := filepath.Join(filepath.Dir(v.Path), record.VolumeFile)
	writeUnbounded(t, file, &old)
	s := n.start()
	got, err := s.Get(v.ID)
	require.NoError(t, err)
	require.NoError(t, got.Unavailable)
	require.Len(t, got.Origin.ClaimLabels, v1alpha1.MaxClaimLabels)
	findings := verify.Live(t.Context(), s.View())
	require.True(t, contains(findings, "larger than what is written now"), "%v", findings)
	require.NoError(t, verify.Repair(t.Context(), findings))
	require.Empty(t, verify.Live(t.Context(), s.View()))

	writeUnbounded(t, file, &old)
	s = n.start()
	require.NoError(t, s.Delete(t.Context(), v.ID, keep(60)))
	_, err = s.Restore(t.Context(), v.ID)
	require.NoError(t, err)
	require.NoError(t, s.Delete(t.Context(), v.ID, purge))
	require.NoError(t, s.Drain(t.Context()))
	require.NoDirExists(t, filepath.Dir(v.Path))
}

// writeUnbounded writes a record as package record did before it had a bound.
func writeUnbounded(t *testing.T, file string, v *record.Volume) {
	t.Helper()
	body, err := json.Marshal(v)
	require.NoError(t, err)
	sum := sha256.Sum256(body)
	data, err := json.MarshalIndent(map[string]any{"format": 1,
		"checksum": "sha256:" + hex.EncodeToString(sum[:]), "volume": json.RawMessage(body)}, "", "  ")
	require.NoError(t, err)
	require.Greater(t, len(data), 2*mib)
	require.False(t, bytes.Contains(data, []byte("\n\n")))
	require.NoError(t, os.WriteFile(file, data, 0o600))
}

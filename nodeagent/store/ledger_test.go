package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestLedger is the ledger's arithmetic, step by step. It needs no disk.
func TestLedger(t *testing.T) {
	l := newLedger()
	reserve := func(key string, bytes, capacity, available int64, ok bool) {
		t.Helper()
		a, o := l.reserve(key, bytes, capacity)
		require.Equal(t, available, a)
		require.Equal(t, ok, o)
	}
	reserve("a", 60, 100, 100, true)
	reserve("b", 50, 100, 40, false)
	require.False(t, l.has("b"), "what was refused is not there")
	reserve("b", 40, 100, 40, true)
	reserve("a", 60, 100, 60, true) // the same again
	reserve("a", 61, 100, 60, false)
	require.EqualValues(t, 100, l.promised(), "a refused growth changes nothing")

	l.set("c", 10) // what is on disk is promised, room or not
	require.EqualValues(t, 110, l.promised())
	reserve("d", 1, 100, 0, false)
	l.move("c", "trash/c")
	require.EqualValues(t, 110, l.promised())
	l.move("c", "trash/c")
	require.EqualValues(t, 110, l.promised(), "a second move changes nothing")
	l.move("b", "a") // over another one, whose promise it replaces
	require.Equal(t, map[string]int64{"a": 40, "trash/c": 10}, l.all())
	require.EqualValues(t, 50, l.promised())
	require.True(t, l.release("a"))
	require.False(t, l.release("a"))
	require.True(t, l.release("trash/c"))
	require.Zero(t, l.promised())
}

// TestOwed says what a pool keeps for a volume.
func TestOwed(t *testing.T) {
	cases := []struct {
		name string
		rec  record.Volume
		want int64
	}{
		{"thick image", record.Volume{Backend: record.BackendLoop, Allocation: record.AllocationThick, SizeBytes: 7}, 7},
		{"thin image", record.Volume{Backend: record.BackendLoop, Allocation: record.AllocationThin, SizeBytes: 7}, 7},
		{"image without enforcement", record.Volume{Backend: record.BackendLoop, Enforcement: record.EnforcementNone, SizeBytes: 7}, 7},
		{"growing", record.Volume{Backend: record.BackendLoop, SizeBytes: 7, GrowingTo: 9}, 9},
		{"directory", record.Volume{Backend: record.BackendDirectory, QuotaKind: record.QuotaBtrfs, SizeBytes: 7}, 7},
		{"directory without a limit", record.Volume{Backend: record.BackendDirectory, SizeBytes: 7, GrowingTo: 9}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.rec.Owed()) })
	}
}

// TestForgetKeepsWhatIsBeingMade takes a pool's disk away: what it had is
// forgotten, and what is being made there keeps its promise and its quota id.
func TestForgetKeepsWhatIsBeingMade(t *testing.T) {
	sp := newSpace("fs")
	p := &pool{}
	p.cfg.Name = "pool1"
	sp.ledger.set(p.key("made"), 10)
	sp.ledger.set(p.key("making"+admissionMark+"1"), 20)
	sp.ledger.set("pool10/other", 40) // a pool whose name begins alike
	made := &record.Volume{QuotaKind: record.QuotaProject, QuotaID: uint64(quota.FirstID)}
	making := &record.Volume{QuotaKind: record.QuotaProject, QuotaID: uint64(quota.FirstID) + 1}
	require.True(t, sp.own(p.key("made"), made))
	require.True(t, sp.own(tmpKey(p, "making"), making))
	sp.forget(p.key(""))
	require.Equal(t, map[string]int64{p.key("making" + admissionMark + "1"): 20, "pool10/other": 40}, sp.ledger.all())
	require.False(t, sp.owns(p.key("made"), made))
	require.True(t, sp.owns(tmpKey(p, "making"), making))
}

package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestForgetKeepsWhatIsBeingMade takes a pool's disk away: what it had is
// forgotten, and what is being made there keeps its promise and its quota id.
func TestForgetKeepsWhatIsBeingMade(t *testing.T) {
	sp := newSpace("fs")
	p := &pool{}
	p.cfg.Name = "pool1"
	sp.ledger.Set(p.key("made"), 10)
	sp.ledger.Set(p.key("making"+admissionMark+"1"), 20)
	sp.ledger.Set("pool10/other", 40) // a pool whose name begins alike
	made := &record.Volume{QuotaKind: record.QuotaProject, QuotaID: uint64(quota.FirstID)}
	making := &record.Volume{QuotaKind: record.QuotaProject, QuotaID: uint64(quota.FirstID) + 1}
	require.True(t, sp.own(p.key("made"), made))
	require.True(t, sp.own(tmpKey(p, "making"), making))
	sp.forget(p.key(""))
	require.Equal(t, map[string]int64{p.key("making" + admissionMark + "1"): 20, "pool10/other": 40},
		sp.ledger.Promises())
	require.False(t, sp.owns(p.key("made"), made))
	require.True(t, sp.owns(tmpKey(p, "making"), making))
}

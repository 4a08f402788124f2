package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestWhatIsMovedIsNotStale has a pool read again at the moment between two
// steps of an operation, when the books have a volume under a name that the
// store does not: nothing is taken back until the operation has ended.
func TestWhatIsMovedIsNotStale(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	p := n.store.pools[0]
	_, space, err := p.state()
	require.NoError(t, err)
	rec := &record.Volume{ID: "pvc-1", Backend: record.BackendDirectory, QuotaKind: record.QuotaProject,
		QuotaID: 0x51000010, SizeBytes: mib}
	for _, key := range []string{p.key("pvc-1"), p.key("pvc-1@1700000000"),
		p.key("pvc-1@1700000000" + disk.FreeingSuffix)} {
		p.promise(space, key, rec.SizeBytes)
		require.True(t, space.own(key, rec))
		unlock, err := n.store.locks.TryLock("pvc-1")
		require.NoError(t, err)
		n.store.dropStale(p, space)
		require.True(t, space.ledger.Has(key), "%s is moved by somebody", key)
		require.True(t, space.owns(key, rec), "%s is moved by somebody", key)

		unlock()
		n.store.dropStale(p, space)
		require.False(t, space.ledger.Has(key), "nothing has %s", key)
		require.Empty(t, space.ledger.Owner(uint32(rec.QuotaID)), "nothing has %s", key)
	}
}

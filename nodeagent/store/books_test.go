package store

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func fillWith(t *testing.T, path string, bytes int) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	block := make([]byte, mib)
	for i := range block {
		block[i] = byte(i*i>>8 ^ i)
	}
	for range bytes / mib {
		_, err := f.Write(block)
		require.NoError(t, err)
	}
	require.NoError(t, f.Sync())
}

// TestNoneCountsOnce fills a volume without a limit within its size: a pool's
// room falls by what is in it, once.
func TestNoneCountsOnce(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	before := room(n)
	v := n.mustCreate(Request{ID: "pvc-1", Enforcement: record.EnforcementNone, SizeBytes: 256 * mib})
	fillWith(t, filepath.Join(v.Path, "file"), 250*mib)
	require.InDelta(t, before-250*mib, room(n), 8*mib)

	_, err := n.create(Request{ID: "pvc-2", Enforcement: record.EnforcementNone, SizeBytes: before})
	var full *disk.CapacityError
	require.ErrorAs(t, err, &full, "there has to be room for it when it is made")
	_, err = n.store.Grow(t.Context(), v.ID, v.SizeBytes+before)
	require.ErrorAs(t, err, &full)
	grown, err := n.store.Grow(t.Context(), v.ID, v.SizeBytes+100*mib)
	require.NoError(t, err)
	require.EqualValues(t, v.SizeBytes+100*mib, grown.SizeBytes)
	require.InDelta(t, before-250*mib, room(n), 8*mib)
}

// TestGrowthAndAdmissionAtOnce lets a growth and an admission ask for the same
// room at the same time.
func TestGrowthAndAdmissionAtOnce(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(block("pvc-1"))
	known := n.store.lookup(v.ID)
	p := n.store.pools[0]
	_, space, err := p.state()
	require.NoError(t, err)
	capacity, err := n.store.capacity(p, space, 0)
	require.NoError(t, err)
	size := capacity * 6 / 10 / blockAlign * blockAlign
	for range 20_000 {
		var wg sync.WaitGroup
		var adm []*Admission
		wg.Go(func() { _ = n.store.reserveGrowth(known, space, size) })
		wg.Go(func() {
			adm, _ = n.store.admitAll([]Request{{ID: "new-1", Backend: "auto", Enforcement: record.EnforcementQuota,
				VolumeMode: record.ModeBlock, Allocation: record.AllocationThin, SizeBytes: size}})
		})
		wg.Wait()
		require.LessOrEqual(t, space.ledger.Promised(), capacity+mib) // measured anew, it is some blocks more or less
		p.promise(space, p.key(v.ID), v.SizeBytes)
		for _, a := range adm {
			a.Cancel()
		}
	}
}

// TestRoomThatIsBeingFreed asks for more than there is while enough of it is in
// the trash: without anybody who frees it is told how much, else it waits.
func TestRoomThatIsBeingFreed(t *testing.T) {
	for _, k := range []poolKind{onExt4, onBtrfs} {
		t.Run(k.name, func(t *testing.T) {
			n := newNode(t, k.make(t, gib))
			size := room(n) * 7 / 10 / blockAlign * blockAlign
			r := Request{VolumeMode: record.ModeBlock, Allocation: record.AllocationThick, SizeBytes: size}
			r.ID = "pvc-1"
			n.mustCreate(r)
			require.NoError(t, n.store.Delete(t.Context(), "pvc-1", purge))
			r.ID = "pvc-2"
			_, err := n.store.Admit(t.Context(), r)
			var full *disk.CapacityError
			require.ErrorAs(t, err, &full)
			require.Equal(t, size, full.Freeing)
			require.ErrorContains(t, err, "are being freed")
			require.Equal(t, v1alpha1.ReasonInsufficientCapacity, first(Reason(err)))

			free(t, n)
			for {
				_, err := n.create(r)
				if err == nil {
					break
				}
				require.ErrorAs(t, err, &full) // a slow machine: longer than anybody waits
			}
		})
	}
}

func first(reason string, _ bool) string { return reason }

// free runs the freer until the test ends.
func free(t *testing.T, n *node) {
	t.Helper()
	s := n.store
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(t.Context())
	}()
	t.Cleanup(func() { <-ended }) // after the test's context has ended
}

// onDisk is the simple ledger that a node is compared with: what each volume
// and each entry of the trash is owed.
type onDisk struct {
	n       *node
	rnd     *rand.Rand
	volumes map[string]int64
	pools   map[string]string
	trash   map[string]int64
	away    bool
}

// TestBooksOnDisk does in any order, on real filesystems, what moves the books:
// one and groups, growth, trash, restoring, purging, adoption, crashes, a pool
// that goes and comes back. After each step the books say what a simple ledger
// says. QUARRY_BOOKS_SEED repeats a run.
func TestBooksOnDisk(t *testing.T) {
	seed := booksSeed(t)
	for _, k := range []poolKind{onExt4, onBtrfs, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, 2*gib)
			one, two := filepath.Join(path, "one"), filepath.Join(path, "two")
			require.NoError(t, os.Mkdir(one, 0o755))
			require.NoError(t, os.Mkdir(two, 0o755))
			m := &onDisk{n: newNode(t, one, two), rnd: rand.New(rand.NewPCG(seed, 2)),
				volumes: map[string]int64{}, pools: map[string]string{}, trash: map[string]int64{}}
			for i := range 60 {
				what := m.step(t, i)
				m.compare(t, fmt.Sprintf("QUARRY_BOOKS_SEED=%d, step %d: %s", seed, i, what))
			}
			m.back(t)
		})
	}
}

func (m *onDisk) request(id string) Request {
	r := Request{ID: id, VolumeMode: record.ModeBlock, Allocation: record.AllocationThin,
		SizeBytes: int64(1+m.rnd.IntN(12)) * 32 * mib}
	if m.rnd.IntN(2) == 0 {
		r = Request{ID: id, Backend: "auto", Enforcement: record.EnforcementQuota,
			SizeBytes: int64(1+m.rnd.IntN(12)) * 32 * mib}
		if !m.limits() {
			r.Enforcement = record.EnforcementNone
		}
	}
	if m.rnd.IntN(2) == 0 {
		r.Pool = m.n.pools[m.rnd.IntN(2)].Name
	}
	return r
}

func (m *onDisk) limits() bool {
	f := m.n.store.Pools()[0].Features
	return f.ProjectQuota || f.SimpleQuota
}

func (m *onDisk) owed(r Request) int64 {
	if r.Enforcement == record.EnforcementNone {
		return 0
	}
	return r.SizeBytes
}

func (m *onDisk) pick(from map[string]int64) (string, bool) {
	ids := slices.Sorted(maps.Keys(from))
	if len(ids) == 0 {
		return "", false
	}
	return ids[m.rnd.IntN(len(ids))], true
}

func (m *onDisk) step(t *testing.T, i int) string {
	s := m.n.store
	switch m.rnd.IntN(9) {
	case 0, 1, 2:
		return m.create(t, i)
	case 3:
		id, ok := m.pick(m.volumes)
		if !ok || m.isAway(id) {
			return "nothing"
		}
		v, err := s.Get(id)
		require.NoError(t, err)
		size := v.SizeBytes + int64(m.rnd.IntN(6))*32*mib
		_, err = s.Grow(t.Context(), id, size)
		if _, ok := errors.AsType[*disk.CapacityError](err); ok {
			return "growth refused"
		}
		require.NoError(t, err)
		if m.volumes[id] > 0 {
			m.volumes[id] = size
		}
		return "grow " + id
	case 4:
		id, ok := m.pick(m.volumes)
		if !ok || m.isAway(id) {
			return "nothing"
		}
		require.NoError(t, s.Delete(t.Context(), id, keep(3600)))
		m.trash[id] = m.volumes[id]
		delete(m.volumes, id)
		return "trash " + id
	case 5:
		id, ok := m.pick(m.trash)
		if !ok || m.isAway(id) {
			return "nothing"
		}
		if m.rnd.IntN(2) == 0 {
			_, err := s.Restore(t.Context(), id)
			require.NoError(t, err)
			m.volumes[id] = m.trash[id]
			delete(m.trash, id)
			return "restore " + id
		}
		require.NoError(t, s.Delete(t.Context(), id, purge))
		require.NoError(t, s.Drain(t.Context()))
		delete(m.trash, id)
		return "purge " + id
	case 6:
		return m.crash(t, i)
	case 7:
		return m.flap(t)
	default:
		return m.adopt(t, i)
	}
}

func (m *onDisk) create(t *testing.T, i int) string {
	var group []Request
	for j := range 1 + m.rnd.IntN(3) {
		group = append(group, m.request(fmt.Sprintf("v%d-%d", i, j)))
	}
	admitted, err := m.n.store.Admit(t.Context(), group...)
	if _, refused := Reason(err); refused {
		return "refused"
	}
	require.NoError(t, err)
	for j, a := range admitted {
		if m.rnd.IntN(5) == 0 {
			a.Cancel()
			continue
		}
		v, err := m.n.store.Create(t.Context(), a)
		require.NoError(t, err)
		m.volumes[v.ID], m.pools[v.ID] = m.owed(group[j]), v.Pool
	}
	return fmt.Sprintf("create %d", len(group))
}

// crash ends a creation at some step, as a process that dies there does, and
// opens the store anew.
func (m *onDisk) crash(t *testing.T, i int) string {
	m.back(t)
	var left atomic.Int64 // volumes come up side by side
	left.Store(int64(1 + m.rnd.IntN(8)))
	m.n.start(func(o *Options) {
		o.Fault = func(string) error {
			if left.Add(-1) < 0 {
				return errors.New("the process is gone")
			}
			return nil
		}
	})
	r := m.request(fmt.Sprintf("v%d-0", i))
	if adm, err := m.n.store.Admit(t.Context(), r); err == nil {
		_, _ = m.n.store.Create(t.Context(), adm[0]) // it may have come to its end
	}
	m.n.start()
	require.NoError(t, m.n.store.Drain(t.Context()))
	if v, err := m.n.store.Get(r.ID); err == nil {
		m.volumes[v.ID], m.pools[v.ID] = m.owed(r), v.Pool
	}
	return "crash"
}

// flap takes the first pool's identity away or puts it back.
func (m *onDisk) flap(t *testing.T) string {
	if m.away {
		m.back(t)
		return "back"
	}
	identity := filepath.Join(m.n.pools[0].Path, record.MetaDir, record.PoolFile)
	require.NoError(t, os.Rename(identity, identity+"-away"))
	m.n.store.Refresh(t.Context())
	require.NotNil(t, m.n.store.Pools()[0].Offline)
	m.away = true
	return "away"
}

func (m *onDisk) back(t *testing.T) {
	if !m.away {
		return
	}
	identity := filepath.Join(m.n.pools[0].Path, record.MetaDir, record.PoolFile)
	require.NoError(t, os.Rename(identity+"-away", identity))
	m.n.store.Refresh(t.Context())
	require.Nil(t, m.n.store.Pools()[0].Offline)
	m.away = false
}

func (m *onDisk) isAway(id string) bool { return m.away && m.pools[id] == m.n.pools[0].Name }

// adopt makes a volume of an image that somebody put into a pool.
func (m *onDisk) adopt(t *testing.T, i int) string {
	m.back(t)
	pool := m.n.pools[m.rnd.IntN(2)]
	path := filepath.Join(pool.Path, fmt.Sprintf("Image%d", i)) // no volume is called so
	fillWith(t, path, 16*mib)
	id := fmt.Sprintf("v%d-0", i)
	v, err := m.n.create(Request{ID: id, VolumeMode: record.ModeBlock, Allocation: record.AllocationThick,
		SizeBytes: 16 * mib,
		Adopt:     &Adoption{Path: path, Type: string(v1alpha1.AdoptFile)}})
	if _, refused := Reason(err); refused {
		require.NoError(t, os.Remove(path))
		return "adoption refused: " + err.Error()
	}
	require.NoError(t, err)
	m.volumes[id], m.pools[id] = v.SizeBytes, v.Pool
	return "adopt " + id
}

func (m *onDisk) compare(t *testing.T, what string) {
	t.Helper()
	var owed int64
	for _, bytes := range m.volumes {
		owed += bytes
	}
	for _, bytes := range m.trash {
		owed += bytes
	}
	p := m.n.store.Pools()[1] // both share a filesystem, and so its ledger
	require.Equal(t, owed, p.Promised, what)
	room := max(p.Capacity-p.Promised, 0)
	require.Equal(t, room, p.Available, what)
}

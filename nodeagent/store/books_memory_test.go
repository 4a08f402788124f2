package store

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// booksSeed is the seed of a run of the tests below: QUARRY_BOOKS_SEED repeats
// one.
func booksSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("QUARRY_BOOKS_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("QUARRY_BOOKS_SEED=%d", seed)
	return seed
}

// paper is a store on two filesystems that are but numbers: everything that is
// done to the books is done by the store's own code, and nothing by a disk.
type paper struct {
	*Store
	// usable is each filesystem's, in bytes.
	usable map[string]*atomic.Int64
}

const paperSize = 1000 * mib

// newPaper makes pools a and b on the first filesystem and c on the second.
func newPaper(t *testing.T) *paper {
	t.Helper()
	var pools []config.Pool
	for _, p := range poolsAt([]string{"/a", "/b", "/c"}) {
		p.PurgeUnderPressure = false
		pools = append(pools, p)
	}
	s := New(Options{Pools: pools, HeavyJobs: 8})
	p := &paper{Store: s, usable: map[string]*atomic.Int64{"fs1": {}, "fs2": {}}}
	for _, u := range p.usable {
		u.Store(paperSize)
	}
	s.measuring = func(_ *pool, space *filesystemSpace) (int64, int64, error) {
		return p.usable[space.key].Load(), paperSize, nil
	}
	for i := range s.pools {
		p.online(i)
	}
	return p
}

// space is the filesystem that a pool is on.
func (p *paper) space(i int) *filesystemSpace { return p.spaceOf([]string{"fs1", "fs1", "fs2"}[i]) }

func (p *paper) online(i int) {
	space, pl := p.space(i), p.pools[i]
	pl.mu.Lock()
	pl.space, pl.offline = space, nil
	pl.features = disk.Features{ProjectQuota: true, Filesystem: "xfs"}
	pl.identity = &record.Pool{UID: "uid-" + pl.name()}
	pl.mu.Unlock()
}

func (p *paper) offline(i int) {
	pl := p.pools[i]
	pl.mu.Lock()
	pl.offline = &disk.OfflineError{Pool: pl.name(), Reason: disk.OfflineMissing, Err: errors.New("away")}
	pl.mu.Unlock()
	p.forgetPool(pl, i < 2) // the third has a disk of its own, which is gone
}

// commit is what Create does to the books once the volume is in its place.
func (p *paper) commit(a *Admission) *volume {
	rec := newRecord(a)
	rec.QuotaKind = "" // ids are tested elsewhere
	rec.Backend = record.BackendLoop
	v := &volume{id: rec.ID, pool: a.pool, rec: *rec}
	p.mu.Lock()
	p.volumes[v.id] = v
	p.mu.Unlock()
	a.pool.promise(a.space, a.pool.key(v.id), rec.Owed())
	a.space.ledger.Release(a.key)
	return v
}

// sketch is the simple ledger that the books are compared with: what each pool
// owes to whom, on a disk that forgets nothing.
type sketch struct {
	volumes map[string]*volume
	trash   map[string]*trashed
	open    map[string]*Admission
	away    map[*pool]bool
}

func (m *sketch) want(space *filesystemSpace, p *paper) map[string]int64 {
	out := map[string]int64{}
	for _, v := range m.volumes {
		if p.spaceAt(v.pool) == space && (!m.away[v.pool] || v.pool.kept == space) {
			out[v.pool.key(v.id)] = v.rec.Owed()
		}
	}
	for _, e := range m.trash {
		if p.spaceAt(e.pool) == space && (!m.away[e.pool] || e.pool.kept == space) {
			out[e.key()] = e.rec.Owed()
		}
	}
	for _, a := range m.open {
		if a.space == space {
			out[a.key] = a.req.SizeBytes
		}
	}
	return out
}

func (p *paper) spaceAt(pl *pool) *filesystemSpace { return p.space(slices.Index(p.pools, pl)) }

// TestBooks does everything that moves the books, in any order, and compares
// them with a sketch after each step: admissions of one and of groups, commits
// and cancellations, growth, trash, restoring, freeing, disks that go and come
// back, and restarts. It needs no root and no disk.
func TestBooks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(booksSeed(t), 1))
	p := newPaper(t)
	m := &sketch{volumes: map[string]*volume{}, trash: map[string]*trashed{}, open: map[string]*Admission{},
		away: map[*pool]bool{}}
	for i := range 4000 {
		what := p.step(t, rnd, m, i)
		for _, space := range []*filesystemSpace{p.spaceOf("fs1"), p.spaceOf("fs2")} {
			want := m.want(space, p)
			require.Equal(t, want, space.ledger.Promises(), "step %d: %s: the ledger of %s", i, what, space.key)
			require.Equal(t, sum(want), space.ledger.Promised(), "step %d: %s", i, what)
		}
	}
}

func (p *paper) step(t *testing.T, rnd *rand.Rand, m *sketch, i int) string {
	switch op := rnd.IntN(10); op {
	case 0, 1, 2: // a group of one to three
		return p.stepAdmit(t, rnd, m, i)
	case 3, 4:
		if ids := slices.Sorted(maps.Keys(m.open)); len(ids) > 0 {
			id := ids[0]
			a := m.open[id]
			delete(m.open, id)
			if op == 3 && rnd.IntN(3) == 0 {
				a.Cancel()
				a.Cancel() // a second call changes nothing
				return "cancel " + id
			}
			m.volumes[id] = p.commit(a)
			return "commit " + id
		}
	case 5:
		for _, id := range slices.Sorted(maps.Keys(m.volumes)) {
			if v := m.volumes[id]; !m.away[v.pool] && rnd.IntN(2) == 0 {
				return p.stepGrow(t, rnd, v)
			}
		}
	case 6:
		for _, id := range slices.Sorted(maps.Keys(m.volumes)) {
			v := m.volumes[id]
			if m.away[v.pool] || rnd.IntN(3) != 0 {
				continue
			}
			rec := v.rec
			e := &trashed{pool: v.pool, id: id, entry: fmt.Sprintf("%s@%d", id, i), rec: &rec, since: time.Now(),
				trash: record.Trash{Deletion: keep(3600)}}
			p.enterTrash(e, v.pool.key(id))
			delete(m.volumes, id)
			m.trash[e.key()] = e
			return "trash " + id
		}
	case 7:
		return p.stepTrash(rnd, m)
	case 8:
		return p.stepPools(rnd, m)
	case 9:
		if rnd.IntN(8) == 0 {
			p.restart(t, m)
			return "restart"
		}
	}
	return "nothing"
}

func (p *paper) stepAdmit(t *testing.T, rnd *rand.Rand, m *sketch, i int) string {
	var group []Request
	for j := range 1 + rnd.IntN(3) {
		r := Request{ID: fmt.Sprintf("v%d-%d", i, j), Backend: record.BackendLoop, VolumeMode: record.ModeBlock,
			SizeBytes: int64(1+rnd.IntN(100)) * mib}
		if rnd.IntN(2) == 0 {
			r.Pool = p.pools[rnd.IntN(3)].name()
		}
		group = append(group, r)
	}
	before := map[string]int64{}
	for key := range p.usable {
		before[key] = p.spaceOf(key).ledger.Promised()
	}
	admitted, err := p.Admit(t.Context(), group...)
	var full *disk.CapacityError
	var off *disk.OfflineError
	if err != nil {
		require.True(t, errors.As(err, &full) || errors.As(err, &off), "%v", err)
		for key := range p.usable {
			require.Equal(t, before[key], p.spaceOf(key).ledger.Promised(), "all of a group or nothing")
		}
		return "refused"
	}
	for _, a := range admitted {
		m.open[a.req.ID] = a
		require.LessOrEqual(t, a.space.ledger.Promised(), p.usable[a.space.key].Load(),
			"more was promised than there is")
	}
	return fmt.Sprintf("admit %d", len(admitted))
}

func (p *paper) stepGrow(t *testing.T, rnd *rand.Rand, v *volume) string {
	size := max(v.rec.SizeBytes+int64(rnd.IntN(80))*mib, v.rec.GrowingTo)
	space := p.spaceAt(v.pool)
	err := p.reserveGrowth(v, space, size)
	if full, ok := errors.AsType[*disk.CapacityError](err); ok {
		require.Less(t, full.Available, full.Need)
		return "growth refused"
	}
	require.NoError(t, err)
	require.LessOrEqual(t, space.ledger.Promised(), p.usable[space.key].Load())
	next := v.rec
	next.GrowingTo = size
	if rnd.IntN(2) == 0 {
		next.SizeBytes, next.GrowingTo = size, 0
	}
	p.setRecord(v, next)
	return "grow " + v.id
}

func (p *paper) stepTrash(rnd *rand.Rand, m *sketch) string {
	for _, key := range slices.Sorted(maps.Keys(m.trash)) {
		e := m.trash[key]
		if m.away[e.pool] || rnd.IntN(2) == 0 {
			continue
		}
		delete(m.trash, key)
		p.mu.Lock()
		delete(p.trash, key)
		p.mu.Unlock()
		if m.volumes[e.id] == nil && m.open[e.id] == nil && rnd.IntN(2) == 0 {
			v := &volume{id: e.id, pool: e.pool, rec: *e.rec}
			m.volumes[e.id] = v
			p.mu.Lock()
			p.volumes[e.id] = v
			p.mu.Unlock()
			e.pool.books().move(key, e.pool.key(e.id), e.rec)
			return "restore " + e.id
		}
		e.pool.books().ledger.Release(key)
		return "free " + key
	}
	return "nothing"
}

func (p *paper) stepPools(rnd *rand.Rand, m *sketch) string {
	i := rnd.IntN(3)
	pl := p.pools[i]
	if !m.away[pl] && rnd.IntN(3) == 0 {
		p.offline(i)
		m.away[pl] = true
		return "away " + pl.name()
	}
	if !m.away[pl] {
		return "nothing"
	}
	pl.forgetKept(p.space(i))
	p.online(i)
	delete(m.away, pl)
	p.reread(m, pl)
	p.dropStale(pl, p.space(i))
	return "back " + pl.name()
}

// reread is what a scan does to the books.
func (p *paper) reread(m *sketch, pl *pool) {
	space := p.spaceAt(pl)
	for _, v := range m.volumes {
		if v.pool == pl {
			pl.promise(space, pl.key(v.id), v.rec.Owed())
		}
	}
	for key, e := range m.trash {
		if e.pool == pl {
			pl.promise(space, key, e.rec.Owed())
			p.mu.Lock()
			p.trash[key] = e
			p.mu.Unlock()
		}
	}
}

// restart is a new process: what was promised and not begun is gone.
func (p *paper) restart(t *testing.T, m *sketch) {
	fresh := newPaper(t)
	old := p.pools
	p.Store = fresh.Store
	p.Store.measuring = fresh.measuring
	p.usable = fresh.usable
	m.open, m.away = map[string]*Admission{}, map[*pool]bool{}
	for _, v := range m.volumes {
		v.pool = p.pools[slices.Index(old, v.pool)]
		p.volumes[v.id] = v
	}
	for _, e := range m.trash {
		e.pool = p.pools[slices.Index(old, e.pool)]
	}
	for _, pl := range p.pools {
		p.reread(m, pl)
	}
}

// TestBooksInParallel lets admissions, growths and cancellations race for what
// there is: never is more promised, also not for an instant, and in the end
// nothing is promised to nobody. The race detector watches.
func TestBooksInParallel(t *testing.T) {
	seed := booksSeed(t)
	p := newPaper(t)
	grown := make([]*volume, 4)
	for i := range grown {
		a, err := p.Admit(t.Context(), Request{ID: fmt.Sprintf("grown-%d", i), Pool: p.pools[0].name(),
			VolumeMode: record.ModeBlock, SizeBytes: mib})
		require.NoError(t, err)
		grown[i] = p.commit(a[0])
	}
	var wg sync.WaitGroup
	over := atomic.Int64{}
	look := func(space *filesystemSpace) {
		if space.ledger.Promised() > paperSize {
			over.Add(1)
		}
	}
	for w := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range 300 {
				if w < len(grown) {
					v := grown[w] // by one goroutine each, as under the volume's lock
					next := v.rec
					size := int64(1+rnd.IntN(400)) * mib
					if size > v.rec.SizeBytes && p.reserveGrowth(v, p.space(0), size) == nil {
						look(p.space(0))
						next.SizeBytes = size
						p.setRecord(v, next)
					}
					if rnd.IntN(3) == 0 { // and small again, which only a test does
						next.SizeBytes = mib
						p.setRecord(v, next)
						v.pool.promise(p.space(0), v.pool.key(v.id), mib)
					}
					continue
				}
				adm, err := p.Admit(t.Context(),
					Request{ID: fmt.Sprintf("w%d-%d", w, i), VolumeMode: record.ModeBlock,
						SizeBytes: int64(1+rnd.IntN(300)) * mib},
					Request{ID: fmt.Sprintf("w%d-%d-b", w, i), Pool: p.pools[1].name(), VolumeMode: record.ModeBlock,
						SizeBytes: int64(1+rnd.IntN(300)) * mib})
				look(p.space(0))
				look(p.space(2))
				for _, a := range adm {
					a.Cancel()
				}
				if full := (*disk.CapacityError)(nil); err != nil && !errors.As(err, &full) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Zero(t, over.Load(), "more was promised than there is")
	want := map[string]int64{}
	for _, v := range grown {
		want[v.pool.key(v.id)] = v.rec.Owed()
	}
	require.Equal(t, want, p.spaceOf("fs1").ledger.Promises())
	require.Empty(t, p.spaceOf("fs2").ledger.Promises())
}

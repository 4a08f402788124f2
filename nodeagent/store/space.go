package store

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/ledger"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// filesystemSpace is what pools on one filesystem share: its free space and its
// quota ids.
type filesystemSpace struct {
	key    string
	ledger *ledger.Ledger

	mu       sync.Mutex
	measured time.Time
	expired  time.Time // what was measured before counts no more
	free     int64     // what tenants could take when it was measured, in bytes
	usable   int64     // free and used by volumes together, in bytes
	size     int64
	failed   error // of the last measurement
	// measuring is the measurement that is under way; heavy and adopting bound
	// what loads the disk; freeing: somebody frees its trash; sweep: something
	// in tmp or of the index could not be cleared away; one keeps Run and Drain
	// from freeing the same entry.
	measuring *measuring
	heavy     *semaphore.Weighted
	adopting  *semaphore.Weighted
	freeing   atomic.Bool
	sweep     atomic.Bool
	one       sync.Mutex
	// probing: pools of one filesystem try what it can do one after the other,
	// for they change the same quotas.
	probing sync.Mutex
}

func newSpace(key string) *filesystemSpace {
	return &filesystemSpace{key: key, ledger: ledger.New(), adopting: semaphore.NewWeighted(1)}
}

// own gives key the quota id that its record names, if there is one. It returns
// false if another key has that id.
func (sp *filesystemSpace) own(key string, rec *record.Volume) bool {
	return rec.QuotaKind == "" || sp.ledger.Own(key, uint32(rec.QuotaID))
}

// owns reports whether the quota id of the record is key's.
func (sp *filesystemSpace) owns(key string, rec *record.Volume) bool {
	return sp.ledger.Owner(uint32(rec.QuotaID)) == key
}

// move gives what key was promised, and its quota id, to another key: that of
// the same data under another name.
func (sp *filesystemSpace) move(key, to string, rec *record.Volume) {
	id := uint32(0)
	if rec != nil && rec.QuotaKind != "" {
		id = uint32(rec.QuotaID)
	}
	sp.ledger.Move(key, to, id)
}

// forget drops everything whose key begins with prefix: a pool's disk went
// away. What is being made there keeps its promise and its quota id, which end
// with the work: the disk may be back before that, and nobody else must have
// been given them meanwhile.
func (sp *filesystemSpace) forget(prefix string) {
	making := prefix + record.TmpDir + "/"
	sp.ledger.Forget(
		func(key string) bool {
			return strings.HasPrefix(key, prefix) && !strings.Contains(key, admissionMark)
		},
		func(key string) bool {
			return strings.HasPrefix(key, prefix) && !strings.HasPrefix(key, making)
		},
	)
}

// expire has the filesystem's space measured anew when it is asked for next.
func (sp *filesystemSpace) expire() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.expired = time.Now()
}

// capacity is how many bytes the pool may promise altogether, measured no
// longer than maxAge ago.
func (s *Store) capacity(p *pool, space *filesystemSpace, maxAge time.Duration) (int64, error) {
	space.mu.Lock()
	since := time.Now().Add(-maxAge)
	if space.expired.After(since) {
		since = space.expired
	}
	known, fresh := !space.measured.IsZero(), !space.measured.Before(since)
	space.mu.Unlock()

	if !fresh {
		// What was measured before counts while the disk is slow. A disk that
		// stays slow is taken offline elsewhere.
		if err := s.measureNow(p, space, since); err != nil && (!known ||
			!errors.Is(err, errSlow)) {
			return 0, err
		}
	}

	space.mu.Lock()
	usable, size := space.usable, space.size
	space.mu.Unlock()

	return p.promisable(usable, size), nil
}

// lastCapacity is capacity by what was measured last, however long ago: for
// those who hold a lock that must not wait for a disk. It is errSlow where
// nothing was measured yet.
func (s *Store) lastCapacity(p *pool, space *filesystemSpace) (int64, error) {
	space.mu.Lock()
	usable, size, known, failed := space.usable, space.size, !space.measured.IsZero(), space.failed
	space.mu.Unlock()

	if !known && failed == nil {
		failed = errSlow
	}

	if !known {
		return 0, failed
	}

	return p.promisable(usable, size), nil
}

// promisable is what a pool may promise of a filesystem on which so many bytes
// are usable.
func (p *pool) promisable(usable, size int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.Overcommit.Of(max(usable-p.reserve.Of(size), 0))
}

// measure looks at what volumes and trash use of a filesystem, and then at its
// free space, in this order: what a volume takes in between is missing in both,
// and so is promised to nobody, where the other order would promise it twice.
// Free is what a tenant may take (f_bavail), not root's reserve.
func (s *Store) measure(p *pool, space *filesystemSpace) (usable, size int64, err error) {
	r, err := p.open()
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()

	used := int64(0)
	roots := map[*pool]*disk.Root{p: r}
	defer func() {
		for other, r := range roots {
			if other != p && r != nil {
				r.Close()
			}
		}
	}()

	for _, m := range s.taking(space) {
		own, opened := roots[m.pool]
		if !opened {
			// What is on a pool that cannot be opened takes its space all the
			// same, and nobody is promised it.
			own, _ = m.pool.open()
			roots[m.pool] = own
		}

		if own == nil {
			continue
		}

		n, err := s.taken(own, &m)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("measure what a volume takes", "pool", m.pool.name(), "volume", m.rec.ID,
				"error", err)
		}

		// What it takes beyond its promise does not count as its own: it is
		// taken from what all may be promised.
		used += min(n, m.rec.Owed())
	}

	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File().Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", r.Path(), err)
	}

	space.mu.Lock()
	space.free = int64(st.Bavail) * st.Frsize
	space.mu.Unlock()

	return int64(st.Bavail)*st.Frsize + used, int64(st.Blocks) * st.Frsize, nil
}

// spaceUser is something that takes space of a filesystem: a volume, made or being
// made, or an entry of the trash.
type spaceUser struct {
	pool *pool
	rec  record.Volume
	// image is the path of the image below the pool.
	image string
	// whole is true if every block of it is taken, so that nothing has to be
	// measured.
	whole bool
}

// guess is what a broken directory most likely takes of its pool.
type guess struct {
	pool *pool
	rec  record.Volume
	// image is the path of the image below the pool.
	image string
}

// taking lists what takes space of a filesystem.
func (s *Store) taking(space *filesystemSpace) []spaceUser {
	pools := map[*pool]bool{}
	for _, p := range s.pools {
		p.mu.Lock()
		pools[p] = p.space == space
		p.mu.Unlock()
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	out := make([]spaceUser, 0, len(s.volumes)+len(s.trash)+len(s.builds))
	for id, v := range s.volumes {
		if pools[v.pool] {
			whole := backend.TakesAll(&v.rec) && v.rec.GrowingTo == 0 &&
				v.unavailable == nil
			out = append(out, spaceUser{v.pool, v.rec, id + "/" + record.ImageFile, whole})
		}
	}

	for id, b := range s.builds {
		if pools[b.pool] {
			out = append(out, spaceUser{b.pool, b.rec,
				record.MetaDir + "/" + record.TmpDir + "/" + id +
					"/" + record.ImageFile, false})
		}
	}

	for _, t := range s.trash {
		if pools[t.pool] && t.rec != nil {
			out = append(out, spaceUser{t.pool, *t.rec,
				record.MetaDir + "/" + record.TrashDir + "/" +
					t.entry + "/" + record.ImageFile, false})
		}
	}

	for _, g := range s.guesses {
		if pools[g.pool] && s.volumes[g.rec.ID] == nil {
			out = append(out, spaceUser{g.pool, g.rec, g.image, false})
		}
	}

	return out
}

// taken is how many bytes of the filesystem it takes. r is its pool.
func (s *Store) taken(r *disk.Root, m *spaceUser) (int64, error) {
	if m.whole {
		return m.rec.SizeBytes, nil
	}
	return s.backends.Of(&m.rec).Taken(r, &m.rec, m.image)
}

// heavy bounds the heavy jobs of one filesystem, so that a disk that hangs does
// not keep others' from being done.
func (s *Store) heavy(space *filesystemSpace) *semaphore.Weighted {
	space.mu.Lock()
	defer space.mu.Unlock()
	if space.heavy == nil {
		space.heavy = semaphore.NewWeighted(int64(s.opts.HeavyJobs))
	}
	return space.heavy
}

// measuring is one measurement of a filesystem that is under way.
type measuring struct {
	began time.Time
	done  chan struct{}
	err   error
}

// errSlow says that a filesystem did not say in time what room it has.
var errSlow = errors.New("its disk takes long to say what room there is")

// measureNow returns once the filesystem was measured, no earlier than since.
// It does not wait long (errSlow). There is one measurement of a filesystem at
// a time.
func (s *Store) measureNow(p *pool, space *filesystemSpace, since time.Time) error {
	wait := time.NewTimer(s.patience.measure)
	defer wait.Stop()

	for {
		space.mu.Lock()
		m := space.measuring
		if m == nil {
			m = &measuring{began: time.Now(), done: make(chan struct{})}
			space.measuring = m
			go s.measureIn(p, space, m)
		}
		space.mu.Unlock()

		if left := s.patience.measure - time.Since(m.began); left <= 0 && !isClosed(m.done) {
			return errSlow // somebody waited for it in vain already
		}

		select {
		case <-m.done:
		case <-wait.C:
			return errSlow
		}

		if m.err != nil || !m.began.Before(since) {
			return m.err
		}
	}
}

func (s *Store) measureIn(p *pool, space *filesystemSpace, m *measuring) {
	usable, size, err := s.measuring(p, space)
	space.mu.Lock()
	defer space.mu.Unlock()
	if err == nil {
		space.usable, space.size, space.measured = usable, size, m.began
	}
	m.err, space.failed, space.measuring = err, err, nil
	close(m.done)
}

func (s *Store) allSpaces() []*filesystemSpace {
	var out []*filesystemSpace
	for _, p := range s.pools {
		if _, space, err := p.state(); err == nil && !slices.Contains(out, space) {
			out = append(out, space)
		}
	}
	return out
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

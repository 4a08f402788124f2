package store

import (
	"errors"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// pool is one configured pool. No descriptor of it is held between operations,
// so that an administrator can unmount it.
type pool struct {
	cfg config.Pool

	// mu may be taken while Store.mu is held, never the other way round.
	mu       sync.Mutex
	expect   disk.Expectation
	identity *record.Pool // as last read
	offline  *disk.OfflineError
	features disk.Features
	space    *filesystemSpace
	seen     lastSeen
	// kept holds what the pool is promised while it is offline, if its
	// directory still is on that filesystem.
	kept *filesystemSpace
	// reserve is what of the filesystem is never promised, as the configuration
	// says or by default.
	reserve config.Reserve
	// doubted: something failed on the disk since it was last written to.
	doubted bool
	// told is the room that was last reported, once wasTold.
	told    int64
	wasTold bool

	// ops are the operations on it that are under way, and glance the look at
	// it (with Store.refreshing held).
	ops    underWay
	glance *glance
	// lookedAt: it was looked at once (with Store.refreshing held).
	lookedAt bool
	// silent counts those who asked the disk for something, and were left
	// without an answer.
	silent atomic.Int32
	// found are volumes that a look found on the disk, which are to be brought
	// up.
	found []*volume
	// came: its disk came, and load has not taken it up; loading: what is on it
	// is being read.
	came, loading bool

	// heldUID is the identity of the pool that this one holds, and lock what
	// keeps other processes from it. They change with Store.holding held.
	heldUID string
	lock    *os.File
}

// books are the ledger and the owners of quota ids of the filesystem below the
// pool, nil while nothing is known of it. What volumes and trash hold is
// written there as soon as the disk is being read, before anybody may be
// promised anything.
func (p *pool) books() *filesystemSpace {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.space
}

// on reports whether the pool is online on that filesystem.
func (p *pool) on(space *filesystemSpace) bool {
	_, sp, err := p.state()
	return err == nil && sp == space
}

func (p *pool) name() string { return p.cfg.Name }

func (p *pool) online() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.offline == nil && p.space != nil
}

// offlineText says why the pool is offline; it is empty when it is not.
func (p *pool) offlineText() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offline == nil {
		return ""
	}
	return p.offline.Reason + ": " + p.offline.Error()
}

func (p *pool) state() (disk.Features, *filesystemSpace, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offline != nil {
		return disk.Features{}, nil, p.offline
	}
	return p.features, p.space, nil
}

// open opens the pool and proves that it is this pool's disk that is there.
// Every operation begins here: what was true a moment ago may not be now.
func (p *pool) open() (*disk.Root, error) {
	p.mu.Lock()
	want, offline := p.expect, p.offline
	p.mu.Unlock()
	if offline != nil && offline.IsBarred() {
		return nil, offline
	}
	want.TakeOver = "" // only refresh does it, once
	end := p.ops.begin()
	r, _, err := disk.Open(&p.cfg, &want)
	if err != nil {
		end()
		return nil, err
	}
	r.End = end
	return r, nil
}

// longestLabelValue is in bytes, as the API server has it.
const longestLabelValue = 63

// PoolLabels are the labels of a pool and of its Pool object, which a class's
// poolSelector chooses by, here and in the controller: those of the
// configuration, and where the pool is. A node's name that is longer than a
// label's value may be is left out; without a cluster there is none.
func PoolLabels(node string, c *config.Pool) map[string]string {
	all := maps.Clone(c.Labels)
	if all == nil {
		all = map[string]string{}
	}
	all[v1alpha1.LabelPool] = c.Name
	if all[v1alpha1.LabelNode] = node; node == "" || len(node) > longestLabelValue {
		delete(all, v1alpha1.LabelNode)
	}
	return all
}

// probe tries what the pool's filesystem can do. Where the disk is too full to
// try, what was found the last time counts.
func (p *pool) probe(r *disk.Root) (disk.Features, error) {
	found, err := disk.Probe(r, p.cfg.EnableQuota)
	if err != nil {
		return found, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found.Keep(&p.features)
	return found, nil
}

// directIO reports whether the pool's filesystem has direct I/O.
func (p *pool) directIO() (bool, error) {
	features, _, err := p.state()
	return features.DirectIO, err
}

// with opens the pool for one call.
func (p *pool) with(do func(*disk.Root) error) error {
	r, err := p.open()
	if err != nil {
		return err
	}
	defer r.Close()
	return do(r)
}

// key names a volume or a trash entry in a ledger.
func (p *pool) key(entry string) string { return p.name() + "/" + entry }

// tmpKey is the key of a volume that is being made.
func tmpKey(p *pool, id string) string { return p.key(record.TmpDir + "/" + id) }

// uid is the identity of the pool as its disk last told it.
func (p *pool) uid() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.identity == nil {
		return ""
	}
	return p.identity.UID
}

// gone is why a pool that was being read is not there any more.
func (p *pool) gone() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offline != nil {
		return p.offline
	}
	return &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineMissing,
		Err: errors.New("its disk went away while it was read")}
}

// admissionMark is in the ledger's keys of admissions. No id has it.
const admissionMark = "#"

// underWay are the operations on a pool that have not come back yet.
type underWay struct {
	mu    sync.Mutex
	last  int
	since map[int]time.Time
}

// begin notes an operation and returns what ends it. A second call of that
// does nothing.
func (u *underWay) begin() (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.since == nil {
		u.since = map[int]time.Time{}
	}
	u.last++
	id := u.last
	u.since[id] = time.Now()
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.since, id)
	}
}

// longest is how long the oldest operation has been under way.
func (u *underWay) longest() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	var longest time.Duration
	for _, since := range u.since {
		longest = max(longest, time.Since(since))
	}
	return longest
}

// glance is one look at a pool that is under way.
type glance struct {
	since time.Time
	done  chan struct{}
}

// lastSeen is what was last seen of a pool's directories. A look compares it
// with what is there now, to know whether anything came or went.
type lastSeen struct {
	root, trash unix.Timespec // modification times
	// since is when they were first seen, by the monotonic clock.
	since time.Time
	// settled is true if all was read so late that nothing can have come within
	// the same tick of the filesystem's clock.
	settled bool
}

package store

import (
	"context"
	"errors"
	"maps"
	"os"
	"sync"
	"sync/atomic"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// pool is one configured pool. No descriptor of it is held between operations, so that an administrator can unmount it.
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
	// kept holds what the pool is promised while it is offline, if its directory still is on that filesystem.
	kept *filesystemSpace
	// reserve is what of the filesystem is never promised, as the configuration says or by default.
	reserve config.Reserve
	// doubted: something failed on the disk since it was last written to.
	doubted bool
	// told is the room that was last reported, once wasTold.
	told    int64
	wasTold bool

	// ops are the operations on it that are under way, and glance the look at it (with Store.refreshing held).
	ops    underWay
	glance *glance
	// lookedAt: it was looked at once (with Store.refreshing held).
	lookedAt bool
	// silent counts those who asked the disk for something, and were left without an answer.
	silent atomic.Int32
	// found are volumes that a look found on the disk, which are to be brought up.
	found []*volume
	// came: its disk came, and load has not taken it up; loading: what is on it is being read.
	came, loading bool

	// heldUID is the identity of the pool that this one holds, and lock what keeps other processes from it. They change with
	// Store.holding held.
	heldUID string
	lock    *os.File
}

// books are the ledger and the owners of quota ids of the filesystem below the pool, nil while nothing is known of it. What volumes
// and trash hold is written there as soon as the disk is being read, before anybody may be promised anything.
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

// open opens the pool and proves that it is this pool's disk that is there. Every operation begins here: what was true a
// moment ago may not be now.
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

// PoolLabels are the labels of a pool and of its Pool object, which a class's poolSelector chooses by, here and in the
// controller: those of the configuration, and where the pool is. A node's name
// that is longer than a label's value may be is left out; without a cluster there is none.
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

// refresh looks whether the pool's disk is there, and takes in what changed. It returns true when the disk came, or another
// filesystem is below the pool now; then the pool is Loading until load has read it.
func (p *pool) refresh(ctx context.Context, s *Store) (came bool) {
	p.mu.Lock()
	want, space := p.expect, p.space
	loading := p.loading || p.came
	wasOnline := space != nil && (p.offline == nil || loading && p.offline.Reason == disk.OfflineLoading)
	p.mu.Unlock()

	r, identity, err := disk.Open(&p.cfg, &want)
	var offline *disk.OfflineError
	if err != nil {
		offline = disk.OfflineFor(p.name(), err)
	} else {
		defer r.Close()
		s.awaitThaw(ctx, p, r)
		var key string
		if key, err = disk.FilesystemKey(r.File()); err == nil && wasOnline && space.key == key {
			if loading {
				err = p.alive(r)
			} else {
				err = s.look(ctx, p, r, space)
			}
			if err == nil {
				return false
			}
		} else if err == nil {
			err = p.alive(r)
			if err == nil {
				err = s.hold(p, identity)
			}
			if err == nil {
				identity, err = disk.SignHolder(r, identity, want.By)
			}
		}
		if err == nil {
			if wasOnline {
				s.forgetPool(p, false) // the same pool, now on another device: a copied disk
			}
			var features disk.Features
			space := s.spaceOf(key) // not under p.mu, which is taken under Store.mu
			space.probing.Lock()
			features, err = p.probe(r)
			space.probing.Unlock()
			if err == nil {
				s.forgetVolumes(p, identity.UID)
				p.forgetKept(space)
				reserve, why := disk.ReserveOf(&p.cfg, r, s.opts.KubeletDir)
				s.log.InfoContext(ctx, "what the pool never promises", "pool", p.name(), "reserve", reserve.String(), "because", why)
				p.mu.Lock()
				p.reserve = reserve
				p.features, p.space, p.identity = features, space, identity
				p.offline = &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineLoading, Err: errors.New("what is on its disk is being read")}
				// From now on it must be this disk, whatever was known before.
				p.expect.UID = identity.UID
				p.mu.Unlock()
				return true
			}
		}
		offline = disk.OfflineFor(p.name(), err)
	}
	p.mu.Lock()
	changed := p.offline == nil || p.offline.Reason != offline.Reason
	p.offline = offline
	p.mu.Unlock()
	if changed {
		s.log.WarnContext(ctx, "pool is offline", "pool", p.name(), "reason", offline.Reason, "error", offline.Err)
		s.forgetPool(p, space != nil && p.isOn(space.key))
		if offline.IsElsewhere() {
			s.unhold(p)
		}
	}
	p.mu.Lock()
	kept := p.kept
	p.mu.Unlock()
	if kept != nil && !p.isOn(kept.key) {
		p.forgetKept(nil)
		s.notify()
	}
	return false
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
	return &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineMissing, Err: errors.New("its disk went away while it was read")}
}

// admissionMark is in the ledger's keys of admissions. No id has it.
const admissionMark = "#"

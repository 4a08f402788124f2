package store

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/keylock"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Options are what a Store is opened with.
type Options struct {
	// Node is written into what is made, for people.
	Node string
	// Pools are the node's pools.
	Pools []config.Pool
	// HeavyJobs bounds how many mkfs and preallocations run at once on one
	// filesystem. 0: 2.
	HeavyJobs int
	// ByClaimIndex keeps links by namespace and claim for people.
	ByClaimIndex bool
	// MachineID tells this machine from another one under the same node name
	// (machine-id(5)). Empty: it is not known.
	MachineID string
	// LockDir is the directory with the locks that keep other processes of the
	// machine from the pools: LockDir, for all that change anything. Empty: no
	// locks, for programs that change nothing and for tests.
	LockDir string
	// HangAfter is how long a disk may take to answer before its pool is
	// offline. 0: 45 seconds.
	HangAfter time.Duration
	// KubeletDir is kubelet's root directory: a pool on its filesystem keeps
	// more free by default. Empty: there is no kubelet.
	KubeletDir string
	// DeviceDir replaces the constant, for tests.
	DeviceDir string
	// Log receives what no caller is told. nil: slog.Default.
	Log *slog.Logger
	// Fault is called with the name of each step that changes the disk, before
	// it is taken; an error ends the operation there. For tests that crash at
	// every step.
	Fault func(step string) error
}

// Store holds the volumes of one node.
type Store struct {
	opts  Options
	log   *slog.Logger
	locks keylock.Set
	// awaiting bounds how many requests wait for room that is being freed.
	awaiting *semaphore.Weighted
	// patience is how long a disk may take to answer.
	patience patience
	pools    []*pool
	freer    *freer
	// admission makes choosing a pool and promising its space one step, for all
	// volumes of a group. It is held for arithmetic only, never for work on a
	// disk.
	admission sync.Mutex
	// spreading are admissions that have a spread group. It is changed with
	// admission held; those that ended are dropped there.
	spreading []*Admission
	// abandoned are the volumes that were given up while their disk did not
	// answer, by id.
	abandoned sync.Map
	// holding keeps two pools from taking the same directory.
	holding sync.Mutex
	// refreshing keeps the looks at the pools that are under way. It is never
	// held while somebody waits for a disk.
	refreshing sync.Mutex
	// measuring is measure; tests put another in its place.
	measuring func(*pool, *filesystemSpace) (usable, size int64, err error)
	// background are looks, and volumes being brought up, that nobody may be
	// waiting for any more.
	background sync.WaitGroup
	// backends are how the volumes' data lies on the disks.
	backends *backend.Backends
	watcher  watcher

	mu      sync.Mutex
	volumes map[string]*volume
	builds  map[string]*volume  // being made
	trash   map[string]*trashed // by pool and entry
	spaces  map[string]*filesystemSpace
	// broken are directories of pools that cannot be read as volumes, by pool
	// and name. They are reported and left alone.
	broken map[string]error
	// guesses are what broken ones most likely take of their pool, by the same
	// keys (broken.go).
	guesses map[string]guess
	// changed is closed and replaced when pools or what they hold changed.
	changed chan struct{}
	// feeds are told what changed.
	feeds []*Feed
	// begun is what looks found to do and is not done.
	begun []*begun
}

// volume is one volume that the store knows.
type volume struct {
	id   string
	pool *pool
	// rec changes only with both the volume's lock and Store.mu held.
	rec record.Volume
	// unavailable says why it cannot be used, nil if it can.
	unavailable error
	// gone is true if its directory was not there when it was last looked at.
	gone bool
	// poolUID is the identity of the disk it was found or made on.
	poolUID string
	// notEnforced says why its size is not in force; round is the look at all
	// of it that is under way.
	notEnforced error
	round       round
	// up is what was found when an image volume was last proven to be up, nil
	// while it is not.
	up *backend.Standing
	// device is what it was up on last, also while it is not up: it is kept
	// open.
	device *loop.Device
	// held: it was to be deleted, and could not be taken down. Then holders are
	// looked for before that is tried again, for trying changes the node's
	// mounts, which is what has it tried again. The volume's lock is held for
	// it.
	held bool
}

// round is a look at all of a volume, in slices. It changes with the volume's
// lock held, the times also with Store.mu.
type round struct {
	cursor quota.Cursor // how far the walk has come
	// charged is how far the look at the subvolumes of a volume on btrfs has
	// come.
	charged btrfs.Cursor
	found   error // the first *EnforcementError of this round
	// looked is when a round last came to its end, or when the volume was first
	// met.
	looked time.Time
}

// begun is work that somebody may wait for.
type begun struct {
	since time.Time
	done  chan struct{}
}

// errNotUp is a volume's unavailability until it was brought up.
var errNotUp = errors.New("it was not brought up yet")

// Volume describes a volume.
type Volume struct {
	record.Volume
	Pool    string
	PoolUID string
	// Path is what a local PersistentVolume points at: a directory, or for
	// Block a link to the device.
	Path string
	// Unavailable says why the volume cannot be used, nil if it can.
	Unavailable error
	// NotEnforced says why its size is not, or lately was not, in force: an
	// *EnforcementError, or nil.
	NotEnforced error
}

// Pool describes a pool. Sizes are bytes.
type Pool struct {
	config.Pool
	UID string
	// MadeOn is the node where the pool was made, as its disk tells it; another
	// one than this if the disk was moved here.
	MadeOn   string
	Features disk.Features
	// Filesystem is the same for all pools on one filesystem.
	FilesystemID string
	Capacity     int64
	Promised     int64
	Available    int64
	// Purgeable is how much more could be promised if trash were freed before
	// its time; 0 if the pool does not allow that.
	Purgeable int64
	Volumes   int
	Trashed   int
	Broken    map[string]error
	Offline   *disk.OfflineError
}

// New makes a store of the pools. Nothing is touched yet: Expect and Refresh
// bring pools online.
func New(opts Options) *Store {
	if opts.HeavyJobs <= 0 {
		opts.HeavyJobs = config.DefaultHeavyJobs
	}

	if opts.DeviceDir == "" {
		opts.DeviceDir = disk.DeviceDir
	}

	if opts.Log == nil {
		opts.Log = slog.Default()
	}

	s := &Store{
		opts:     opts,
		log:      opts.Log,
		patience: opts.patience(),
		awaiting: semaphore.NewWeighted(freedWaiters),
		volumes:  map[string]*volume{},
		builds:   map[string]*volume{},
		trash:    map[string]*trashed{},
		spaces:   map[string]*filesystemSpace{},
		broken:   map[string]error{},
		guesses:  map[string]guess{},
		changed:  make(chan struct{}),
	}
	for _, c := range opts.Pools {
		p := &pool{cfg: c}
		p.offline = &disk.OfflineError{Pool: c.Name, Reason: disk.OfflineUninitialized,
			Err: errors.New("not looked at yet")}
		p.reserve = c.Reserve
		p.expect.By = record.PoolHolder{Node: opts.Node, MachineID: opts.MachineID}
		s.pools = append(s.pools, p)
	}

	s.freer, s.measuring = newFreer(s), s.measure
	s.backends = &backend.Backends{DeviceDir: opts.DeviceDir, Fault: s.fault, Log: opts.Log}
	s.backends.Questions.Late = s.answeredLate
	return s
}

// Expect says what is known of a pool; who opens it is this store, whatever By
// says. It takes effect at the next Refresh.
func (s *Store) Expect(poolName string, e disk.Expectation) {
	for _, p := range s.pools {
		if p.name() == poolName {
			p.mu.Lock()
			e.By = p.expect.By
			p.expect = e
			p.mu.Unlock()
		}
	}
}

// Changed returns a channel that is closed at the next change of a pool's state
// or content.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) fault(step string) error {
	if s.opts.Fault == nil {
		return nil
	}
	return s.opts.Fault(step)
}

// spaceOf returns what pools on the filesystem key share.
func (s *Store) spaceOf(key string) *filesystemSpace {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.spaces[key]
	if sp == nil {
		sp = newSpace(key)
		s.spaces[key] = sp
	}
	return sp
}

// Get returns the volume id, or a *NotFoundError.
func (s *Store) Get(id string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.volumes[id]
	if v == nil {
		return Volume{}, &NotFoundError{ID: id}
	}
	return s.describeLocked(v), nil
}

// List returns all volumes, ordered by id.
func (s *Store) List() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Volume, 0, len(s.volumes))
	for _, id := range slices.Sorted(maps.Keys(s.volumes)) {
		out = append(out, s.describeLocked(s.volumes[id]))
	}
	return out
}

// describeLocked is called with Store.mu held.
func (s *Store) describeLocked(v *volume) Volume {
	v.pool.mu.Lock()
	uid, offline := v.pool.expect.UID, v.pool.offline
	v.pool.mu.Unlock()

	d := Volume{
		Volume:      v.rec,
		Pool:        v.pool.name(),
		PoolUID:     uid,
		Path:        disk.PathOf(&v.rec, v.pool.cfg.Path, s.opts.DeviceDir),
		Unavailable: v.unavailable,
		NotEnforced: v.notEnforced,
	}
	if offline != nil {
		d.Unavailable = offline
	}

	return d
}

// lookup returns the volume or nil.
func (s *Store) lookup(id string) *volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumes[id]
}

// FilesystemOf returns the filesystem that a pool lies on, "" if it is offline.
// Unlike Pools it measures and counts nothing.
func (s *Store) FilesystemOf(pool string) string {
	for _, p := range s.pools {
		if p.name() == pool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.features.Filesystem
		}
	}
	return ""
}

// forgetPool drops what is known of a pool that went offline. If its directory
// is still on its filesystem, which other pools may share, its promises are
// kept: the pool is back as soon as its trouble is over. If its disk is gone,
// they are dropped.
func (s *Store) forgetPool(p *pool, still bool) {
	p.mu.Lock()
	space := p.space
	p.space = nil
	if space != nil && still {
		p.kept = space
	}
	p.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()

	for key, t := range s.trash {
		if t.pool == p {
			delete(s.trash, key)
		}
	}

	for key := range s.broken {
		if strings.HasPrefix(key, p.key("")) {
			delete(s.broken, key)
			delete(s.guesses, key)
		}
	}

	if space != nil && !still {
		space.forget(p.key(""))
	}
}

// forgetVolumes drops the volumes of a pool in whose place another one came,
// with identity uid. They are not on that one.
func (s *Store) forgetVolumes(p *pool, uid string) {
	p.mu.Lock()
	same := p.identity == nil || p.identity.UID == uid
	p.mu.Unlock()

	if same {
		return
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	maps.DeleteFunc(s.volumes, func(_ string, v *volume) bool { return v.pool == p })
}

func (s *Store) setRecord(v *volume, rec record.Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.rec = rec
}

func (s *Store) setGone(v *volume, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.gone = gone
}

func (s *Store) isGone(v *volume) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return v.gone
}

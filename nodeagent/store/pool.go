package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Reasons a pool is offline for: of the Pool object's condition Ready.
const (
	OfflineMissing           = "Missing"           // its directory or disk is not there
	OfflineSwapped           = "Swapped"           // another pool's disk is there
	OfflineForeign           = "Foreign"           // the disk belongs to another cluster
	OfflineNoMountpoint      = "NoMountpoint"      // requireMountpoint, and there is none
	OfflineUninitialized     = "Uninitialized"     // nothing there yet, and it is not known whether there should be
	OfflineUnreadable        = "Unreadable"        // pool.json can not be read
	OfflineInUse             = "InUse"             // another process of this machine has it
	OfflineInUseElsewhere    = "InUseElsewhere"    // another node, or another machine, had it last, and may have it still
	OfflineDuplicate         = "Duplicate"         // another pool of the configuration is the same directory
	OfflineNetworkFilesystem = "NetworkFilesystem" // other machines may use its filesystem too, and it is not configured to be there
	OfflineReadOnly          = "ReadOnly"          // its filesystem takes no writes: mounted so, or the kernel made it so after an error
	OfflineHung              = "Hung"              // its disk does not answer
	OfflineFrozen            = "Frozen"            // its filesystem is frozen, by a backup of the machine, say, and who writes waits
	OfflineFailed            = "Failed"            // the disk answers with errors
	OfflineRebuilt           = "Rebuilt"           // Missing, on another machine than the one that had it; whoever knows machines says so
	OfflineLoading           = "Loading"           // its disk is there, and what is on it is being read
	OfflineNotConfigured     = "NotConfigured"     // the agent's configuration does not name it any more; whoever knows Pool objects says so
)

// pool is one configured pool. No descriptor of it is held between operations, so that an administrator can unmount it.
type pool struct {
	cfg config.Pool

	// mu may be taken while Store.mu is held, never the other way round.
	mu       sync.Mutex
	expect   expectation
	identity *record.Pool // as last read
	offline  *OfflineError
	features Features
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

// expectation is what is known of a pool's identity from elsewhere than its disk.
type expectation struct {
	uid       string // must be this; empty: any
	mayCreate bool   // nothing there: make it a pool
	never     bool   // as long as there is no uid: nothing was ever made in it
	clusterID string // must be this, where the disk names one
	node      string
	machine   string
	// takeFrom is who had the disk last and has it no more.
	takeFrom string
	// takeOver is another cluster whose disk may be made this one's.
	takeOver string
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

// root is an open pool whose identity was checked.
type root struct {
	*beneath.Dir
	meta *beneath.Dir
	// uid is its identity.
	uid string
	// end says that the operation that opened it came back.
	end func()
}

func (r *root) Close() error {
	if r.end != nil {
		r.end()
	}
	return errors.Join(r.meta.Close(), r.Dir.Close())
}

// sub opens one of the pool's own directories, making it where it is missing.
func (r *root) sub(name string) (*beneath.Dir, error) { return r.meta.EnsureDir(name, 0o700) }

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

func (p *pool) state() (Features, *filesystemSpace, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offline != nil {
		return Features{}, nil, p.offline
	}
	return p.features, p.space, nil
}

// open opens the pool and proves that it is this pool's disk that is there. Every operation begins here: what was true a
// moment ago may not be now.
func (p *pool) open() (*root, error) {
	p.mu.Lock()
	want, offline := p.expect, p.offline
	p.mu.Unlock()
	if offline != nil && offline.barred() {
		return nil, offline
	}
	want.takeOver = "" // only refresh does it, once
	end := p.ops.begin()
	r, _, err := p.openAs(want)
	if err != nil {
		end()
		return nil, err
	}
	r.end = end
	return r, nil
}

func (p *pool) openAs(want expectation) (*root, *record.Pool, error) {
	off := func(reason string, err error) (*root, *record.Pool, error) {
		return nil, nil, &OfflineError{Pool: p.name(), Reason: reason, Err: err}
	}
	dir, err := beneath.Open(p.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return off(OfflineMissing, fmt.Errorf("there is no directory %s", p.cfg.Path))
	}
	if err != nil {
		return nil, nil, p.offlineFor(err)
	}
	if want.node != "" {
		if err := p.checkFilesystem(dir.File()); err != nil {
			dir.Close()
			return nil, nil, p.offlineFor(err)
		}
	}
	if p.cfg.RequireMountpoint {
		if ok, err := isMountpoint(p.cfg.Path, dir.File()); err != nil || !ok {
			dir.Close()
			if err == nil {
				err = fmt.Errorf("%s is not a mount point, and requireMountpoint is set", p.cfg.Path)
			}
			return off(OfflineNoMountpoint, err)
		}
	}
	meta, err := dir.OpenDir(record.MetaDir)
	var identity *record.Pool
	if err == nil {
		identity, err = readIdentity(meta)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if meta != nil {
			meta.Close()
		}
		if want.uid != "" {
			dir.Close()
			return off(OfflineMissing, fmt.Errorf("%s holds no pool, and pool %s is known to exist: its disk is not mounted", p.cfg.Path, want.uid))
		}
		if !want.mayCreate {
			dir.Close()
			return off(OfflineUninitialized, fmt.Errorf("%s holds no pool yet, and the cluster could not be asked whether it should", p.cfg.Path))
		}
		if err = alone(dir.File()); err == nil {
			meta, identity, err = p.initialize(dir, want)
		}
	case err != nil && meta != nil:
		meta.Close()
	}
	if err != nil {
		dir.Close()
		var unreadable *record.UnreadableError
		if errors.As(err, &unreadable) {
			return off(OfflineUnreadable, fmt.Errorf("%s: %w", filepath.Join(p.cfg.Path, record.MetaDir, record.PoolFile), err))
		}
		return nil, nil, p.offlineFor(err)
	}
	r := &root{Dir: dir, meta: meta, uid: identity.UID}
	if want.uid != "" && identity.UID != want.uid {
		r.Close()
		return off(OfflineSwapped, fmt.Errorf("%s holds pool %s (made as %s on %s), not %s", p.cfg.Path, identity.UID, identity.Name, identity.Node, want.uid))
	}
	if want.clusterID != "" && identity.ClusterID != "" && identity.ClusterID != want.clusterID {
		if want.takeOver != identity.ClusterID {
			r.Close()
			return off(OfflineForeign, fmt.Errorf("%s holds pool %s of another cluster (%s)", p.cfg.Path, identity.UID, identity.ClusterID))
		}
		if identity, err = takeOver(meta, identity, want); err != nil {
			r.Close()
			return nil, nil, p.offlineFor(fmt.Errorf("take over %s from cluster %s: %w", p.cfg.Path, want.takeOver, err))
		}
	}
	if err := p.mayHave(identity, want); err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, identity, nil
}

// takeOver writes this cluster into the identity of a pool of another one: from then on the disk is foreign there. Where it was
// made stays.
func takeOver(meta *beneath.Dir, identity *record.Pool, want expectation) (*record.Pool, error) {
	ours := *identity
	ours.ClusterID = want.clusterID
	ours.Holder = &record.PoolHolder{Node: want.node, MachineID: want.machine}
	data, err := record.EncodePool(&ours)
	if err != nil {
		return nil, err
	}
	return &ours, meta.WriteFile(record.PoolFile, data, 0o600) // durable when it returns
}

func readIdentity(meta *beneath.Dir) (*record.Pool, error) {
	data, err := meta.ReadFile(record.PoolFile, record.MaxSize)
	if err != nil {
		return nil, err
	}
	return record.DecodePool(data)
}

// initialize makes a pool of the directory: the identity file is the commit.
func (p *pool) initialize(dir *beneath.Dir, want expectation) (*beneath.Dir, *record.Pool, error) {
	meta, err := dir.EnsureDir(record.MetaDir, 0o700)
	if err != nil {
		return nil, nil, err
	}
	if identity, err := readIdentity(meta); err == nil {
		return meta, identity, nil // somebody was faster
	}
	identity := &record.Pool{UID: uuid.NewString(), CreatedAt: time.Now().UTC().Truncate(time.Second), ClusterID: want.clusterID, Node: want.node, Name: p.name(),
		Holder: &record.PoolHolder{Node: want.node, MachineID: want.machine}}
	data, err := record.EncodePool(identity)
	if err == nil {
		err = meta.WriteFile(record.PoolFile, data, 0o600)
	}
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		meta.Close()
		return nil, nil, fmt.Errorf("make a pool of %s: %w", p.cfg.Path, err)
	}
	return meta, identity, nil
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

// isMountpoint tells whether the pool lies on another filesystem than its parent directory. The parent is looked at as the
// machine's first process sees it: inside a container every hostPath is a mount point, also one on the root disk.
func isMountpoint(path string, dir *os.File) (bool, error) {
	is, err := isMountpointIn("/proc/1/root", path, dir)
	if err != nil {
		return false, fmt.Errorf("look at the directory above (the agent needs hostPID): %w", err)
	}
	return is, nil
}

// isMountpointIn is isMountpoint as it is seen below another root directory.
func isMountpointIn(root, path string, dir *os.File) (bool, error) {
	up, err := os.Open(filepath.Join(root, filepath.Dir(path)))
	if err != nil {
		return false, err
	}
	defer up.Close()
	// Not by st_dev: each subvolume of a btrfs has its own.
	here, err := filesystemKey(dir)
	if err != nil {
		return false, err
	}
	parent, err := filesystemKey(up)
	return here != parent, err
}

// filesystemKey is the same for all directories of one filesystem, btrfs subvolumes included.
func filesystemKey(dir *os.File) (string, error) {
	devs, err := mount.DevicesOf(dir)
	if err != nil {
		return "", err
	}
	texts := make([]string, len(devs))
	for i, d := range devs {
		texts[i] = d.String()
	}
	return strings.Join(texts, ","), nil
}

// refresh looks whether the pool's disk is there, and takes in what changed. It returns true when the disk came, or another
// filesystem is below the pool now; then the pool is Loading until load has read it.
func (p *pool) refresh(ctx context.Context, s *Store) (came bool) {
	p.mu.Lock()
	want, space := p.expect, p.space
	loading := p.loading || p.came
	wasOnline := space != nil && (p.offline == nil || loading && p.offline.Reason == OfflineLoading)
	p.mu.Unlock()

	r, identity, err := p.openAs(want)
	var offline *OfflineError
	if err != nil {
		offline = p.offlineFor(err)
	} else {
		defer r.Close()
		s.awaitThaw(ctx, p, r)
		var key string
		if key, err = filesystemKey(r.File()); err == nil && wasOnline && space.key == key {
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
				identity, err = p.signHolder(r, identity, want)
			}
		}
		if err == nil {
			if wasOnline {
				s.forgetPool(p, false) // the same pool, now on another device: a copied disk
			}
			var features Features
			space := s.spaceOf(key) // not under p.mu, which is taken under Store.mu
			space.probing.Lock()
			features, err = p.probe(r)
			space.probing.Unlock()
			if err == nil {
				s.forgetVolumes(p, identity.UID)
				p.forgetKept(space)
				reserve, why := s.reserveOf(p, r.Dir)
				s.log.InfoContext(ctx, "what the pool never promises", "pool", p.name(), "reserve", reserve.String(), "because", why)
				p.mu.Lock()
				p.reserve = reserve
				p.features, p.space, p.identity = features, space, identity
				p.offline = &OfflineError{Pool: p.name(), Reason: OfflineLoading, Err: errors.New("what is on its disk is being read")}
				// From now on it must be this disk, whatever was known before.
				p.expect.uid = identity.UID
				p.mu.Unlock()
				return true
			}
		}
		offline = p.offlineFor(err)
	}
	p.mu.Lock()
	changed := p.offline == nil || p.offline.Reason != offline.Reason
	p.offline = offline
	p.mu.Unlock()
	if changed {
		s.log.WarnContext(ctx, "pool is offline", "pool", p.name(), "reason", offline.Reason, "error", offline.Err)
		s.forgetPool(p, space != nil && p.isOn(space.key))
		if offline.notThere() {
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

// with opens the pool for one call.
func (p *pool) with(do func(*root) error) error {
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
	return &OfflineError{Pool: p.name(), Reason: OfflineMissing, Err: errors.New("its disk went away while it was read")}
}

// admissionMark is in the ledger's keys of admissions. No id has it.
const admissionMark = "#"

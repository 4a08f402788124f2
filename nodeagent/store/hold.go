package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A pool belongs to one process. Two that keep the books of one disk promise
// it twice, sweep away what the other is making, and two machines would mount
// one image at the same time. Three things keep them apart, each before
// anything on the disk is touched:
//
//   - on one machine a lock on a file outside of the pool, so that an idle
//     pool's disk can be unmounted, which dies with the process;
//   - in one process the identity: a directory under two names is one pool;
//   - between machines the disk's own word on who had it last, and whoever
//     knows the other machine (Expectation.TakeFrom).

// LockDir is where processes of one machine keep each other from a pool. It
// must be the same directory for all of them, on a filesystem that a reboot
// empties.
const LockDir = "/run/quarry/pools"

// Anybody as Expectation.TakeFrom takes a pool from whoever had it.
const Anybody = "*"

// holder is what a lock file says, for people.
type holder struct {
	PID  int    `json:"pid"`
	Node string `json:"node,omitempty"`
	Path string `json:"path"`
}

// hold makes the pool with this identity p's, or returns an *OfflineError that
// says whose it is. A second call changes nothing.
func (s *Store) hold(p *pool, identity *record.Pool) error {
	s.holding.Lock()
	defer s.holding.Unlock()
	for _, other := range s.pools {
		if other != p && other.heldUID == identity.UID {
			return &OfflineError{Pool: p.name(), Reason: OfflineDuplicate, Err: fmt.Errorf(
				"%s is the same directory as %s, which is pool %s, or a copy of it", p.cfg.Path, other.cfg.Path, other.name())}
		}
	}
	if p.heldUID == identity.UID {
		return nil
	}
	s.letGoLocked(p)
	if s.opts.LockDir != "" {
		lock, err := s.lock(p, identity)
		if err != nil {
			return err
		}
		p.lock = lock
	}
	p.heldUID = identity.UID
	return nil
}

// lock takes the lock of a pool among the processes of this machine.
func (s *Store) lock(p *pool, identity *record.Pool) (*os.File, error) {
	if err := os.MkdirAll(s.opts.LockDir, 0o755); err != nil {
		return nil, fmt.Errorf("lock pool %s: %w", identity.UID, err)
	}
	if err := beneath.CheckName(identity.UID); err != nil { // it comes from a disk
		return nil, fmt.Errorf("lock pool: %w", err)
	}
	name := filepath.Join(s.opts.LockDir, identity.UID+".lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock pool %s: %w", identity.UID, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, &OfflineError{Pool: p.name(), Reason: OfflineInUse, Err: fmt.Errorf(
			"%s is in use by another process of this machine%s, and used once that ends", p.cfg.Path, whose(f))}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	text, err := json.Marshal(holder{PID: os.Getpid(), Node: s.opts.Node, Path: p.cfg.Path})
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err != nil { // the lock counts; what it says is for people
		s.log.Warn("write down who has a pool", "lock", name, "error", err)
	}
	return f, nil
}

// whose says what is known of the process that has a lock.
func whose(f *os.File) string {
	var h holder
	text := make([]byte, 4096)
	n, _ := f.ReadAt(text, 0)
	if json.Unmarshal(text[:n], &h) != nil || h.PID == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d, node %q, its path %s)", h.PID, h.Node, h.Path)
}

// unhold lets go of a pool that is not p's any more.
func (s *Store) unhold(p *pool) {
	s.holding.Lock()
	defer s.holding.Unlock()
	s.letGoLocked(p)
}

// letGoLocked is called with holding held.
func (s *Store) letGoLocked(p *pool) {
	if p.lock != nil {
		p.lock.Close()
	}
	p.lock, p.heldUID = nil, ""
}

// Close lets go of the store's pools, so that another one can have them. It is
// for programs that go on; a process that ends needs no Close. Nothing may be
// under way.
func (s *Store) Close() {
	for _, p := range s.pools {
		s.unhold(p)
	}
}

// lastHolder is who had a pool last, as far as its disk tells.
func lastHolder(identity *record.Pool) record.PoolHolder {
	if identity.Holder != nil {
		return *identity.Holder
	}
	return record.PoolHolder{Node: identity.Node}
}

// mayHave returns an error where another node, or another machine under this
// node's name, had the pool last, and nobody said that it may be taken.
func (p *pool) mayHave(identity *record.Pool, want expectation) error {
	last := lastHolder(identity)
	if want.node == "" || last.Node == "" {
		return nil
	}
	sameMachine := last.MachineID == "" || want.machine == "" || last.MachineID == want.machine
	if last.Node == want.node && sameMachine {
		return nil
	}
	if want.takeFrom == Anybody || want.takeFrom == last.String() {
		return nil
	}
	return &OfflineError{Pool: p.name(), Reason: OfflineInUseElsewhere, UID: identity.UID, Holder: last, Err: fmt.Errorf(
		"%s holds pool %s, which was last used by node %s; it is not touched before it is known that that node has it no more",
		p.cfg.Path, identity.UID, last)}
}

// signHolder writes into the pool's identity that this machine has it now. A
// disk that is too full for it is used all the same: it is tried again at the
// next start.
func (p *pool) signHolder(r *root, identity *record.Pool, want expectation) (*record.Pool, error) {
	ours := record.PoolHolder{Node: want.node, MachineID: want.machine}
	if want.node == "" || identity.Holder != nil && *identity.Holder == ours {
		return identity, nil
	}
	signed := *identity
	signed.Holder = &ours
	data, err := record.EncodePool(&signed)
	if err == nil {
		err = r.meta.WriteFile(record.PoolFile, data, 0o600)
	}
	if isFull(err) {
		return identity, nil
	}
	if err != nil {
		return nil, fmt.Errorf("write into %s who has it: %w", p.cfg.Path, err)
	}
	return &signed, nil
}

// alone keeps a directory that is to become a pool from being made one by two
// processes at once. The lock goes with the descriptor.
func alone(dir *os.File) error {
	err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errors.New("another process makes a pool of it at this moment")
	}
	return nil // a filesystem without locks cannot tell
}

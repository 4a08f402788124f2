package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/config"
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

// Lock takes the lock in dir of the pool with this identity, among the
// processes of this machine, or returns an *OfflineError that says who has it.
// Closing the file gives it back, and so does the end of the process.
func Lock(cfg *config.Pool, uid, dir, node string, log *slog.Logger) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock pool %s: %w", uid, err)
	}
	if err := beneath.CheckName(uid); err != nil { // it comes from a disk
		return nil, fmt.Errorf("lock pool: %w", err)
	}
	name := filepath.Join(dir, uid+".lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock pool %s: %w", uid, err)
	}

	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, &OfflineError{Pool: cfg.Name, Reason: OfflineInUse, Err: fmt.Errorf(
			"%s is in use by another process of this machine%s, and used once that ends",
			cfg.Path, whose(f))}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}

	text, err := json.Marshal(holder{PID: os.Getpid(), Node: node, Path: cfg.Path})
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err != nil { // the lock counts; what it says is for people
		log.Warn("write down who has a pool", "lock", name, "error", err)
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

// lastHolder is who had a pool last, as far as its disk tells.
func lastHolder(identity *record.Pool) record.PoolHolder {
	if identity.Holder != nil {
		return *identity.Holder
	}
	return record.PoolHolder{Node: identity.Node}
}

// mayHave returns an error where another node, or another machine under this
// node's name, had the pool last, and nobody said that it may be taken.
func mayHave(cfg *config.Pool, identity *record.Pool, want *Expectation) error {
	last := lastHolder(identity)
	if want.By.Node == "" || last.Node == "" {
		return nil
	}
	sameMachine := last.MachineID == "" || want.By.MachineID == "" ||
		last.MachineID == want.By.MachineID
	if last.Node == want.By.Node && sameMachine {
		return nil
	}
	if want.TakeFrom == Anybody || want.TakeFrom == last.String() {
		return nil
	}
	return &OfflineError{
		Pool: cfg.Name, Reason: OfflineInUseElsewhere, UID: identity.UID, Holder: last,
		Err: fmt.Errorf("%s holds pool %s, which was last used by node %s; "+
			"it is not touched before it is known that the node has it no more",
			cfg.Path, identity.UID, last),
	}
}

// SignHolder writes into the pool's identity that somebody has it now, and
// returns the identity as it is then. A disk that is too full for it is used
// all the same: it is tried again at the next start.
func SignHolder(r *Root, identity *record.Pool, by record.PoolHolder) (*record.Pool, error) {
	if by.Node == "" || identity.Holder != nil && *identity.Holder == by {
		return identity, nil
	}
	signed := *identity
	signed.Holder = &by
	data, err := record.EncodePool(&signed)
	if err == nil {
		err = r.Meta.WriteFile(record.PoolFile, data, 0o600)
	}
	if IsFull(err) {
		return identity, nil
	}
	if err != nil {
		return nil, fmt.Errorf("write into %s who has it: %w", r.Path(), err)
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

package store

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// The store knows what it read when a pool came online, and what it did since.
// Meanwhile a person may have put a directory back, or another agent may have
// made one. So the store looks at the disks before it says that a volume is
// gone.

// Find returns the volume id like Get, but looks at the disks of all pools that
// are online before it says that there is none, with a *NotFoundError. A volume
// that is there and cannot be read is a *MismatchError, or the error of the
// disk. Find knows nothing of pools that are offline: ask Pools.
func (s *Store) Find(ctx context.Context, id string) (Volume, error) {
	if v, err := s.Get(id); err == nil {
		return v, nil
	}
	if err := record.CheckID(id); err != nil {
		return Volume{}, err
	}
	if s.Abandoned(id) {
		// Nothing of it will stay, and its lock is held by the operation that
		// waits for the disk.
		return Volume{}, &NotFoundError{ID: id}
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	if v == nil {
		return Volume{}, &NotFoundError{ID: id, Unseen: unseen}
	}

	return s.Get(id)
}

// Away returns the first of the pools that could not be looked at for a volume
// ([NotFoundError.Unseen]) and may have it all the same: what was asked for by
// such a request may have been made there once. It is nil if there is none.
// Whoever makes the volume anew meanwhile gives an empty one for it.
func (s *Store) Away(r *Request, unseen []*disk.OfflineError) *disk.OfflineError {
	for _, p := range s.pools {
		p.mu.Lock()
		never := p.expect.UID == "" && p.expect.Never
		p.mu.Unlock()
		if never || !r.wants(p, s.opts.Node) {
			continue
		}

		for _, off := range unseen {
			// A second name of a directory that was looked at hides nothing.
			if off.Pool == p.name() && off.Reason != disk.OfflineDuplicate {
				return off
			}
		}
	}

	return nil
}

// seekLocked returns the volume, known or found on a disk, or nil when no pool
// that is online has it; by then its entries in those pools' trash are known,
// too. An error means that it is there and cannot be read. It is called with
// the volume's lock held.
func (s *Store) seekLocked(ctx context.Context, id string) (*volume, error) {
	v, _, err := s.seekAllLocked(ctx, id)
	return v, err
}

// seekAllLocked is seekLocked. If it returns no volume it also returns the
// pools that could not be looked at.
func (s *Store) seekAllLocked(ctx context.Context, id string) (_ *volume,
	unseen []*disk.OfflineError, _ error) {
	if record.CheckID(id) != nil {
		return nil, nil, nil
	}

	known := s.lookup(id)
	if known != nil && !s.isGone(known) {
		return known, nil, nil
	}

	var found *volume
	var broken error
	var copied *disk.CopyError
	for _, p := range s.pools {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}

		v, err := s.seekIn(p, id)
		var offline *disk.OfflineError
		switch {
		case errors.As(err, &offline):
			unseen = append(unseen, offline)
		case errors.As(err, &copied):
		case err != nil:
			broken = errors.Join(broken, err)
		case found == nil:
			found = v
		}
	}

	if found != nil && found != known {
		s.log.WarnContext(ctx, "a volume was found on a disk that was not known to be there",
			"pool", found.pool.name(), "volume", id)
		s.notify()
	}

	switch {
	case found != nil:
		return found, nil, nil
	case broken != nil:
		return nil, nil, broken
	case copied != nil && known == nil && !s.mayBeOn(copied.Of, unseen):
		return nil, nil, copied
	}

	return known, unseen, nil
}

// seekIn looks for a volume, and for entries of its in the trash, on one pool.
// A pool that cannot be looked at is an *OfflineError.
func (s *Store) seekIn(p *pool, id string) (*volume, error) {
	_, space, err := p.state()
	if err != nil {
		return nil, err
	}
	if err := s.answers(p, id); err != nil {
		return nil, err
	}

	r, err := p.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()

	// What cannot be read in the trash is there all the same, and the volume
	// may have been made anew since.
	trashErr := s.seekTrash(p, r, space, id)
	there, err := r.Exists(id)
	if err != nil {
		return nil, unreadable(id, p, err)
	}

	if !there || disk.IsLink(r.Dir, id) {
		s.unmarkBroken(p, id)
		if trashErr != nil {
			return nil, unreadable(id, p, trashErr)
		}
		return nil, nil
	}

	v, err := s.scanVolumeLocked(p, r, space, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		s.markBroken(p, r, space, id, err)
		var copied *disk.CopyError
		if errors.As(err, &copied) && trashErr == nil {
			return nil, copied
		} else if errors.As(err, &copied) {
			err = trashErr
		}

		return nil, unreadable(id, p, err)
	}

	return v, nil
}

// answers returns an *OfflineError if a pool cannot be asked for a volume. It
// tries the reads that are enough if the pool has none, with a time limit,
// since a search must not wait for a disk that hangs.
func (s *Store) answers(p *pool, id string) error {
	err := s.ask(p, func(r *disk.Root) error {
		_ = s.fault("seek in " + p.name()) // nothing is changed that could fail
		if _, err := r.Exists(id); err != nil {
			return err
		}

		_, err := disk.NamesIn(r.Meta, record.TrashDir)
		return err
	})
	if offline, ok := errors.AsType[*disk.OfflineError](err); ok {
		return offline
	}

	return nil // any other error comes up in the search itself
}

// seekTrash registers those of a volume's entries in a pool's trash that are
// not known yet. An error means that one is there and cannot be read, so that
// nobody can say when it may be freed, or whether it is the last of the
// volume's data.
func (s *Store) seekTrash(p *pool, r *disk.Root, space *filesystemSpace, id string) error {
	names, err := disk.NamesIn(r.Meta, record.TrashDir)
	if err != nil {
		return err
	}

	for _, name := range names {
		if of, ok := disk.TrashID(name); !ok || of != id || s.knowsEntry(p, name) {
			continue
		}

		trash, err := r.Sub(record.TrashDir)
		if err != nil {
			return err
		}

		s.scanTrashEntryLocked(p, r, space, trash, name, id)
		trash.Close()
		if cause := s.brokenCause(p, record.TrashDir+"/"+name); cause != nil {
			return inTrash(name, cause)
		}
	}

	return nil
}

func (s *Store) knowsEntry(p *pool, entry string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trash[p.key(entry)] != nil
}

const (
	// lookSettled is longer than a tick of any filesystem's clock.
	lookSettled = time.Second
	// lookAtBroken bounds how many broken directories one look reads again.
	lookAtBroken = 64
)

// lookAgain finds what came to a pool's directories without us, and what could
// not be read and can be now: a record that a person put back, a directory that
// was moved back. It costs a few system calls if nothing changed. takeFound
// brings up what came; what takes long is left to the next look.
func (s *Store) lookAgain(ctx context.Context, p *pool) {
	_, space, err := p.state()
	if err != nil {
		return
	}

	var came []*volume
	until := time.Now().Add(s.patience.look)
	err = p.with(func(r *disk.Root) error {
		names, entries, err := s.unknown(p, r)
		if err != nil {
			return err
		}

		for _, name := range names {
			if time.Now().After(until) {
				p.unsettle()
				return nil
			}
			if v := s.lookAt(ctx, p, r, space, name); v != nil {
				came = append(came, v)
			}
		}

		for _, entry := range entries {
			if time.Now().After(until) {
				p.unsettle()
				return nil
			}
			s.lookAtEntry(p, r, space, entry)
		}

		return nil
	})
	if err != nil {
		s.log.WarnContext(ctx, "look for what came to a pool", "pool", p.name(), "error", err)
	}

	if len(came) > 0 {
		p.mu.Lock()
		p.found = append(p.found, came...)
		p.mu.Unlock()
		s.notify()
	}
}

// takeFound brings up what looks found since its last call, each pool's volumes
// separately. It waits no longer than wait; what is left goes on in the
// background.
func (s *Store) takeFound(ctx context.Context, wait time.Duration) {
	found := map[*pool][]*volume{}
	for _, p := range s.pools {
		p.mu.Lock()
		if len(p.found) > 0 {
			found[p] = p.found
			p.found = nil
		}
		p.mu.Unlock()
	}

	if len(found) == 0 {
		return
	}

	s.soon(ctx, wait, func() {
		var wg sync.WaitGroup
		for _, vols := range found {
			wg.Go(func() { s.bringAllUp(ctx, vols); s.notify() })
		}
		wg.Wait()
	})
}

// unknown lists what is worth a look: names in the pool and entries of its
// trash that are not known, or are known to be broken or gone.
func (s *Store) unknown(p *pool, r *disk.Root) (names, entries []string, err error) {
	changed, err := s.changedListing(p, r)
	if err != nil {
		return nil, nil, err
	}

	var all, trash []string
	if changed {
		if all, err = r.Names(); err == nil {
			trash, err = disk.NamesIn(r.Meta, record.TrashDir)
		}

		if err != nil {
			return nil, nil, err
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	for key := range s.broken {
		name, ok := strings.CutPrefix(key, p.key(""))
		if !ok || len(names)+len(entries) >= lookAtBroken {
			continue
		}

		if entry, ok := strings.CutPrefix(name, record.TrashDir+"/"); ok {
			entries = append(entries, entry)
		} else {
			names = append(names, name)
		}
	}

	for id, v := range s.volumes {
		if v.pool == p && v.gone {
			names = append(names, id)
		}
	}

	for _, name := range all {
		// Also a volume that is known to be on another pool: this is a second
		// one of its id.
		v := s.volumes[name]
		if record.CheckID(name) == nil && (v == nil || v.pool != p) && s.builds[name] == nil &&
			s.broken[p.key(name)] == nil && !disk.IsLink(r.Dir, name) {
			names = append(names, name)
		}
	}

	for _, name := range trash {
		if _, ok := disk.TrashID(name); ok && s.trash[p.key(name)] == nil &&
			s.broken[p.key(record.TrashDir+"/"+name)] == nil {
			entries = append(entries, name)
		}
	}

	return names, entries, nil
}

// changedListing reports whether the pool's directories may hold other names
// than when they were last read.
func (s *Store) changedListing(p *pool, r *disk.Root) (bool, error) {
	var root unix.Stat_t
	if err := unix.Fstat(int(r.File().Fd()), &root); err != nil {
		return false, err
	}

	trash, err := r.Meta.Stat(record.TrashDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}

	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()

	if p.seen.root != root.Mtim || p.seen.trash != trash.Mtim || p.seen.since.IsZero() {
		p.seen = lastSeen{root: root.Mtim, trash: trash.Mtim, since: now}
		return true, nil
	}
	if p.seen.settled {
		return false, nil
	}

	p.seen.settled = now.Sub(p.seen.since) >= lookSettled
	return true, nil
}

// unsettle has the next look read the directories again.
func (p *pool) unsettle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = lastSeen{}
}

// lookAt registers a directory that came, or that can be read again. It returns
// the volume if there is one to bring up.
func (s *Store) lookAt(ctx context.Context, p *pool, r *disk.Root, space *filesystemSpace,
	name string) *volume {
	unlock, err := s.locks.TryLock(name)
	if err != nil {
		p.unsettle() // an operation has it, which may have made what came
		return nil
	}
	defer unlock()

	there, err := r.Exists(name)
	if err != nil {
		return nil
	}

	v := s.lookup(name)
	switch {
	case !there && s.isBroken(p, name):
		s.unmarkBroken(p, name)
		s.notify()
		return nil
	case !there:
		return nil
	case v != nil && v.pool == p && !s.isBroken(p, name) && !s.isGone(v):
		return nil // it was made or restored since
	}

	wasBroken := s.isBroken(p, name)
	v, err = s.scanVolumeLocked(p, r, space, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		s.markBroken(p, r, space, name, err)
		if !wasBroken {
			s.log.ErrorContext(ctx, "a directory of the pool cannot be read as a volume and is "+
				"left alone", "pool", p.name(), "name", name, "error", err)
			s.notify()
		}

		return nil
	}

	if v != nil {
		s.log.InfoContext(ctx, "a volume was put back", "pool", p.name(), "volume", name)
	}

	return v
}

func (s *Store) lookAtEntry(p *pool, r *disk.Root, space *filesystemSpace, entry string) {
	id, ok := disk.TrashID(entry)
	if !ok {
		return
	}

	unlock, err := s.locks.TryLock(id)
	if err != nil {
		p.unsettle()
		return
	}
	defer unlock()

	trash, err := r.Sub(record.TrashDir)
	if err != nil {
		return
	}
	defer trash.Close()

	if there, err := trash.Exists(entry); err == nil && !there {
		s.unmarkBroken(p, record.TrashDir+"/"+entry)
		return
	}
	if !s.knowsEntry(p, entry) {
		s.scanTrashEntryLocked(p, r, space, trash, entry, id)
	}
}

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A disk that was there a moment ago can be read-only, dead or full now, and
// no mount has to change for it. What is looked at here is looked at every few
// seconds, so it costs a few system calls and writes nothing, unless something
// failed on the disk since: then it is tried to write.

// offlineFor says what an error of a pool's disk makes of the pool.
func (p *pool) offlineFor(err error) *OfflineError {
	var offline *OfflineError
	switch {
	case errors.As(err, &offline):
		return offline
	case errors.Is(err, unix.EROFS):
		return &OfflineError{Pool: p.name(), Reason: OfflineReadOnly, Err: err}
	default:
		return &OfflineError{Pool: p.name(), Reason: OfflineFailed, Err: err}
	}
}

// diskFailed reports whether err is of a kind that another disk would not
// have given: this one does not take writes, answers with errors, or is gone.
func diskFailed(err error) bool {
	var mounting *mount.Error
	if errors.Is(err, unix.ENODEV) && errors.As(err, &mounting) {
		return false // the kernel does not know a filesystem's type
	}
	for _, errno := range []unix.Errno{unix.EROFS, unix.EIO, unix.ENODEV, unix.EUCLEAN, unix.EBADMSG, unix.ESHUTDOWN, unix.ESTALE} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// doubt makes the next look at the pool write to it: something failed there.
func (p *pool) doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubted = true
}

func (p *pool) inDoubt() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubted
}

// alive returns why the filesystem below an open pool can not be used, or nil.
func (p *pool) alive(r *root) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File().Fd()), &st); err != nil {
		return fmt.Errorf("statfs %s: %w", r.Path(), err)
	}
	readOnly := func(why string) error {
		return &OfflineError{Pool: p.name(), Reason: OfflineReadOnly, Err: fmt.Errorf("%s is on a filesystem that %s", p.cfg.Path, why)}
	}
	const stReadOnly = 1 // ST_RDONLY of statfs(2): of this mount or of the filesystem
	if st.Flags&stReadOnly != 0 {
		return readOnly("is read-only: an administrator mounted it so, or the kernel did after an error (see the kernel's log)")
	}
	// Some filesystems say only here that they stopped after an error.
	if info, err := mount.Of(r.File()); err == nil {
		for _, word := range []string{"ro", "emergency_ro", "shutdown"} {
			if slices.Contains(info.SuperOptions, word) {
				return readOnly("takes no writes any more (" + word + "): the kernel stopped it after an error (see the kernel's log)")
			}
		}
	}
	if !p.inDoubt() {
		return nil
	}
	if err := tryToWrite(r); err != nil {
		return fmt.Errorf("write to %s: %w", p.cfg.Path, err)
	}
	p.mu.Lock()
	p.doubted = false
	p.mu.Unlock()
	return nil
}

// tryToWrite writes a file of a pool and takes it away. A full disk is alive.
func tryToWrite(r *root) (err error) {
	const name = ".probe-write"
	tmp, err := r.sub(record.TmpDir)
	if isFull(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer tmp.Close()

	f, err := tmp.OpenFile(name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if isFull(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(make([]byte, blockAlign))
	if err == nil {
		err = f.Sync()
	}
	if isFull(err) {
		err = nil
	}
	return errors.Join(err, tmp.Unlink(name))
}

// look is what is looked at of a pool that is online, every few seconds.
func (s *Store) look(ctx context.Context, p *pool, r *root, space *filesystemSpace) error {
	if err := p.alive(r); err != nil {
		return err
	}
	s.probeAgain(ctx, p, r, space)
	if s.roomMoved(p, r, space) {
		s.notifyOf()
	}
	return nil
}

// probeAgain probes what could not be probed when the pool came, for its disk
// was full.
func (s *Store) probeAgain(ctx context.Context, p *pool, r *root, space *filesystemSpace) {
	p.mu.Lock()
	unprobed := p.features.Unprobed
	p.mu.Unlock()
	if !unprobed {
		return
	}
	space.probing.Lock()
	features, err := probe(r, p.cfg.EnableQuota)
	space.probing.Unlock()
	if err != nil || features.Unprobed {
		return
	}
	p.mu.Lock()
	p.features = features
	p.mu.Unlock()
	s.log.InfoContext(ctx, "the pool's disk has room again, and what it can do is known", "pool", p.name(), "features", features)
	s.notify()
}

// refuseFailed makes a refusal of an error that the disk below the admission's
// pool gave, so that another disk is tried, and has the pool looked at.
// Nothing is refused where adopted data was moved already: it is only here.
func (s *Store) refuseFailed(a *Admission, err error) error {
	var offline *OfflineError
	if !diskFailed(err) || errors.As(err, &offline) || s.lookup(a.req.ID) != nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.pool.doubt()
	return a.pool.offlineFor(err)
}

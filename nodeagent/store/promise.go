package store

import (
	"path"
	"strings"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// promise writes into the ledger of a filesystem what is kept for key, unless
// the pool has left that filesystem since it was looked at: then what is
// promised to it there was forgotten, and is read again from its disk when that
// is back. A promise written after that would be nobody's to take back.
func (p *pool) promise(space *filesystemSpace, key string, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.space == space || p.space == nil && p.kept == space {
		space.ledger.Set(key, bytes)
	}
}

// isOn reports whether the pool's directory is on the filesystem of that key,
// whatever is in it.
func (p *pool) isOn(key string) bool {
	dir, err := beneath.Open(p.cfg.Path)
	if err != nil {
		return false
	}
	defer dir.Close()
	now, err := disk.FilesystemKey(dir.File())
	return err == nil && now == key
}

// forgetKept ends what was kept for the pool while it was offline, unless it is
// in the ledger of the filesystem that the pool is on now, where it is read
// anew.
func (p *pool) forgetKept(now *filesystemSpace) {
	p.mu.Lock()
	kept := p.kept
	p.kept = nil
	p.mu.Unlock()
	if kept != nil && kept != now {
		kept.forget(p.key(""))
	}
}

// dropStale takes back what the ledger keeps for the pool and its disk, once
// read, does not have any more: it went while the pool was offline. What an
// operation is working on is left to the operation: it moves things about, and
// for a moment the ledger knows them under a name that the store does not.
func (s *Store) dropStale(p *pool, space *filesystemSpace) {
	for key := range space.ledger.Promises() {
		s.ifStale(p, key, func() { space.ledger.Release(key) })
	}
	for id, key := range space.ledger.Owners() {
		s.ifStale(p, key, func() { space.ledger.Disown(key, id) })
	}
}

// ifStale calls drop if a key of the ledger is the pool's and nothing on it has
// that key.
func (s *Store) ifStale(p *pool, key string, drop func()) {
	name, ours := strings.CutPrefix(key, p.key(""))
	if !ours || strings.HasPrefix(name, record.TmpDir+"/") || strings.Contains(key, admissionMark) {
		return
	}

	id := path.Base(name)
	if of, ok := disk.TrashID(id); ok {
		id = of
	}

	unlock, err := s.locks.TryLock(id)
	if err != nil {
		return
	}
	defer unlock()

	s.mu.Lock()
	v, guess := s.volumes[name], s.guesses[key]
	there := v != nil && v.pool == p && !v.gone || s.trash[key] != nil || guess.pool != nil
	s.mu.Unlock()

	if !there {
		drop()
	}
}

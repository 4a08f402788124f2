package store

import (
	"strings"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// promise writes into the books of a filesystem what is kept for key, unless the
// pool has left that filesystem since it was looked at: then what is promised to
// it there was forgotten, and is read again from its disk when that is back. A
// promise written after that would be nobody's to take back.
func (p *pool) promise(space *filesystemSpace, key string, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.space == space || p.space == nil && p.kept == space {
		space.ledger.set(key, bytes)
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
	now, err := filesystemKey(dir.File())
	return err == nil && now == key
}

// forgetKept ends what was kept for the pool while it was offline, unless it is
// in the books of the filesystem that it is on now: then it is read anew there.
func (p *pool) forgetKept(now *filesystemSpace) {
	p.mu.Lock()
	kept := p.kept
	p.kept = nil
	p.mu.Unlock()
	if kept != nil && kept != now {
		kept.forget(p.key(""))
	}
}

// dropStale takes back what the books keep for the pool and its disk does not
// have any more, once that was read: it went while the pool was offline.
func (s *Store) dropStale(p *pool, space *filesystemSpace) {
	there := map[string]bool{}
	s.mu.Lock()
	for id, v := range s.volumes {
		if v.pool == p && !v.gone {
			there[p.key(id)] = true
		}
	}
	for key := range s.trash {
		there[key] = true
	}
	for key := range s.guesses {
		there[key] = true
	}
	s.mu.Unlock()
	making := p.key(record.TmpDir + "/")
	stale := func(key string) bool {
		return strings.HasPrefix(key, p.key("")) && !strings.HasPrefix(key, making) && !strings.Contains(key, admissionMark) && !there[key]
	}
	for key := range space.ledger.all() {
		if stale(key) {
			space.ledger.release(key)
		}
	}
	space.mu.Lock()
	defer space.mu.Unlock()
	for id, key := range space.owners {
		if stale(key) {
			delete(space.owners, id)
			space.ids.Release(id)
		}
	}
}

package store

import (
	"strings"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// Pools describes all pools, in the order of the configuration.
func (s *Store) Pools() []Pool {
	out := make([]Pool, 0, len(s.pools))
	for _, p := range s.pools {
		out = append(out, s.describePool(p))
	}
	return out
}

// describedAge is how old a measurement may be that Pools reports. A volume
// changes it little while it exists; creating or deleting one expires it.
const describedAge = time.Second

func (s *Store) describePool(p *pool) Pool {
	p.mu.Lock()
	d := Pool{Pool: p.cfg, UID: p.expect.UID, Features: p.features, Offline: p.offline}
	if p.identity != nil {
		d.MadeOn = p.identity.Node
	}
	space := p.space
	p.mu.Unlock()

	d.Broken = map[string]error{}
	s.mu.Lock()
	for _, v := range s.volumes {
		if v.pool == p {
			d.Volumes++
		}
	}
	for _, t := range s.trash {
		if t.pool == p {
			d.Trashed++
		}
	}
	for key, err := range s.broken {
		if name, ok := strings.CutPrefix(key, p.name()+"/"); ok {
			d.Broken[name] = err
		}
	}
	s.mu.Unlock()

	if d.Offline != nil || space == nil {
		return d
	}

	d.FilesystemID = space.key
	capacity, err := s.capacity(p, space, describedAge)
	if err != nil {
		d.Offline = &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineFailed, Err: err}
		return d
	}

	d.Promised = space.ledger.Promised()
	d.Capacity = capacity
	d.Available = max(capacity-d.Promised, 0)
	d.Purgeable = min(s.purgeable(space), max(capacity-d.Available, 0))

	return d
}

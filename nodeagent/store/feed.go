package store

import (
	"maps"
	"slices"
)

// Feed names the volumes that changed, so that a follower of the store need not
// look at all of them.
type Feed struct {
	store *Store
	// Guarded by the store's mutex.
	ids map[string]struct{}
	all bool
}

// Feed returns a new one, which begins with all volumes.
func (s *Store) Feed() *Feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &Feed{store: s, all: true}
	s.feeds = append(s.feeds, f)
	return f
}

// Take returns the ids of the volumes whose state on the node changed since the
// last call: made, grown, gone, available or not, in force or not, out of the
// trash. all is true if it may be any volume: a pool came or went. Call Changed
// first: otherwise what changes in between is seen one change later.
func (f *Feed) Take() (ids []string, all bool) {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	ids, all = slices.Sorted(maps.Keys(f.ids)), f.all
	f.ids, f.all = nil, false
	return ids, all
}

// notify says that anything may have changed.
func (s *Store) notify() { s.tell(true) }

// notifyOf is notify where it is known which volumes changed; without any there
// is only more or less room.
func (s *Store) notifyOf(ids ...string) { s.tell(false, ids...) }

func (s *Store) tell(all bool, ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, f := range s.feeds {
		f.all = f.all || all
		if f.ids == nil {
			f.ids = map[string]struct{}{}
		}

		for _, id := range ids {
			f.ids[id] = struct{}{}
		}
	}

	close(s.changed)
	s.changed = make(chan struct{})
}

package provisioner

import (
	"iter"
	"slices"
)

// waiters are claims or PersistentVolumes that wait, by the library's key;
// those of a node or a class are found without going through all. The zero
// value is ready to use. The lock is the waiting room's; sequences of keys read
// the maps only while they are gone through.
type waiters struct {
	all             map[string]waiter
	byNode, byClass map[string]map[string]struct{}
	// looked counts those that events looked at.
	looked int
}

// put adds a waiter, or replaces the one of its key.
func (s *waiters) put(key string, w waiter) {
	if s.all == nil {
		s.all = map[string]waiter{}
		s.byNode, s.byClass = map[string]map[string]struct{}{}, map[string]map[string]struct{}{}
	}

	if old, waits := s.all[key]; waits && (old.node != w.node || old.class != w.class) {
		s.drop(key)
	}

	s.all[key] = w
	index(s.byNode, w.node, key)
	index(s.byClass, w.class, key)
}

// drop takes a waiter out. It is no error if it is not there.
func (s *waiters) drop(key string) {
	w, waits := s.all[key]
	if !waits {
		return
	}
	delete(s.all, key)
	unindex(s.byNode, w.node, key)
	unindex(s.byClass, w.class, key)
}

// these are the waiters of some keys, as far as there are any. They may be put
// meanwhile.
func (s *waiters) these(keys iter.Seq[string]) iter.Seq2[string, waiter] {
	return func(yield func(string, waiter) bool) {
		for _, key := range slices.Collect(keys) {
			w, waits := s.all[key]
			if !waits {
				continue
			}
			s.looked++
			if !yield(key, w) {
				return
			}
		}
	}
}

// atNode are the keys of those that wait for a node.
func (s *waiters) atNode(node string) iter.Seq[string] {
	return func(yield func(string) bool) { keysOf(s.byNode[node], yield) }
}

// perhapsAtNode are those, and the ones whose node is still to be chosen.
func (s *waiters) perhapsAtNode(node string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if keysOf(s.byNode[node], yield) && node != "" {
			keysOf(s.byNode[""], yield)
		}
	}
}

// ofClass are the keys of those of a class.
func (s *waiters) ofClass(class string) iter.Seq[string] {
	return func(yield func(string) bool) { keysOf(s.byClass[class], yield) }
}

// keysOf yields keys, and reports whether all were taken.
func keysOf(keys map[string]struct{}, yield func(string) bool) bool {
	for key := range keys {
		if !yield(key) {
			return false
		}
	}
	return true
}

// one is a single key.
func one(key string) iter.Seq[string] { return slices.Values([]string{key}) }

func index(by map[string]map[string]struct{}, value, key string) {
	if by[value] == nil {
		by[value] = map[string]struct{}{}
	}
	by[value][key] = struct{}{}
}

func unindex(by map[string]map[string]struct{}, value, key string) {
	delete(by[value], key)
	if len(by[value]) == 0 {
		delete(by, value)
	}
}

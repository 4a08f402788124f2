// Package keylock gives one lock per key, for operations that must exclude each
// other on one volume and on no other.
package keylock

import (
	"context"
	"fmt"
	"sync"
)

// Set is a set of locks that come into being when they are asked for. The zero
// value is ready for use.
type Set struct {
	mu    sync.Mutex
	locks map[string]*lock
}

type lock struct {
	// held has room for one token: who puts it in holds the lock.
	held chan struct{}
	// users counts holders and waiters, so that the last one removes the lock
	// from the map.
	users int
}

// BusyError says that a key was not free.
type BusyError struct{ Key string }

func (e *BusyError) Error() string { return fmt.Sprintf("an operation on %s is under way", e.Key) }

// Lock waits for the key until ctx ends. The returned function gives it back
// and must be called once.
func (s *Set) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l := s.get(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; s.put(key, l) }, nil
	default:
	}

	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; s.put(key, l) }, nil
	case <-ctx.Done():
		s.put(key, l)
		return nil, fmt.Errorf("%w: %w", &BusyError{Key: key}, context.Cause(ctx))
	}
}

// TryLock takes the key only if it is free now; else it returns a *BusyError.
func (s *Set) TryLock(key string) (unlock func(), err error) {
	l := s.get(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; s.put(key, l) }, nil
	default:
		s.put(key, l)
		return nil, &BusyError{Key: key}
	}
}

func (s *Set) get(key string) *lock {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.locks == nil {
		s.locks = map[string]*lock{}
	}

	l := s.locks[key]
	if l == nil {
		l = &lock{held: make(chan struct{}, 1)}
		s.locks[key] = l
	}

	l.users++
	return l
}

func (s *Set) put(key string, l *lock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(s.locks, key)
	}
}

package store

import (
	"maps"
	"sync"
)

// ledger says what one filesystem's space was promised to. It is in memory only: the records on disk are what it is rebuilt from.
//
// What may be promised is measured in a way that does not move when tenants write. "Usable" is the free space plus what
// volumes already use; a tenant who writes moves bytes from one to the other. Of that a pool keeps its reserve and promises
// the rest, times its overcommit ratio.
type ledger struct {
	mu       sync.Mutex
	promises map[string]int64
	total    int64
}

func newLedger() *ledger { return &ledger{promises: map[string]int64{}} }

// set promises bytes to key whether there is room or not: for what is on disk already.
func (l *ledger) set(key string, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total += bytes - l.promises[key]
	l.promises[key] = bytes
}

// reserve promises bytes to key if all promises then stay within capacity; key's former promise is replaced.
// It returns how much could have been promised.
func (l *ledger) reserve(key string, bytes, capacity int64) (available int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	others := l.total - l.promises[key]
	if bytes > capacity-others {
		return max(capacity-others, 0), false
	}
	l.total = others + bytes
	l.promises[key] = bytes
	return capacity - others, true
}

// move gives key's promise to another key.
func (l *ledger) move(key, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes, ok := l.promises[key]; ok {
		l.total -= l.promises[to]
		l.promises[to] = bytes
		delete(l.promises, key)
	}
}

// release takes a promise back, and tells whether there was one. A second call does nothing.
func (l *ledger) release(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	bytes, ok := l.promises[key]
	l.total -= bytes
	delete(l.promises, key)
	return ok
}

// has tells whether anything is promised to key.
func (l *ledger) has(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.promises[key]
	return ok
}

// promised is the sum of all promises, in bytes.
func (l *ledger) promised() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// all is a copy of the promises.
func (l *ledger) all() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.promises)
}

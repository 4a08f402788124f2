// Package ledger keeps the books of one filesystem: what of its space is
// promised to whom, and who has which quota id. They are in memory only, for
// the records on disk are what they are rebuilt from, and know nothing of
// disks.
//
// # Keys
//
// Both are by key. Whose a key is, the caller decides: a volume, an entry of
// the trash, an admission. What is renamed on disk is moved here, from one key
// to another, with all that it has.
//
// # What may be promised
//
// What may be promised is measured in a way that does not move when tenants
// write. "Usable" is the free space plus what volumes already use; a tenant who
// writes moves bytes from one to the other. Of that a pool keeps its reserve
// and promises the rest, times its overcommit ratio. That is the capacity which
// [Ledger.Reserve] is called with.
package ledger

import (
	"maps"
	"sync"

	"github.com/quarry-storage/quarry/nodeagent/quota"
)

// Ledger is the books of one filesystem. It is safe for concurrent use, and no
// other lock is taken and no disk is waited for while its own is held.
type Ledger struct {
	ids *quota.Allocator

	mu       sync.Mutex
	promises map[string]int64
	total    int64
	owners   map[uint32]string
}

// New returns books in which nothing is written.
func New() *Ledger {
	return &Ledger{ids: quota.NewAllocator(nil), promises: map[string]int64{},
		owners: map[uint32]string{}}
}

// Set promises bytes to key whether there is room or not: for what is on disk
// already.
func (l *Ledger) Set(key string, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total += bytes - l.promises[key]
	l.promises[key] = bytes
}

// Reserve promises bytes to key if all promises then stay within capacity;
// key's former promise is replaced. It returns how much could have been
// promised.
func (l *Ledger) Reserve(key string, bytes, capacity int64) (available int64, ok bool) {
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

// Release takes a promise back, and reports whether there was one. A second
// call does nothing.
func (l *Ledger) Release(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.releaseLocked(key)
}

func (l *Ledger) releaseLocked(key string) bool {
	bytes, ok := l.promises[key]
	l.total -= bytes
	delete(l.promises, key)
	return ok
}

// Has reports whether anything is promised to key.
func (l *Ledger) Has(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.promises[key]
	return ok
}

// Promised is the sum of all promises, in bytes.
func (l *Ledger) Promised() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Promises is a copy of all promises.
func (l *Ledger) Promises() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.promises)
}

// Draw finds a quota id that nobody has, by these books and as free tells of
// the disk, and gives it to key.
func (l *Ledger) Draw(key string, free func(id uint32) (bool, error)) (uint32, error) {
	id, err := l.ids.Acquire(free) // which waits for the disk: without the lock
	if err == nil {
		l.mu.Lock()
		l.owners[id] = key
		l.mu.Unlock()
	}
	return id, err
}

// Own gives key a quota id that a record names. It is false when another key
// has it: two volumes under one id share one limit. A second call changes
// nothing.
func (l *Ledger) Own(key string, id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.owners[id] == key {
		return true
	}
	if l.owners[id] != "" || !l.ids.Reserve(id) {
		return false
	}

	l.owners[id] = key
	return true
}

// Owner is the key that has a quota id, and empty where none has.
func (l *Ledger) Owner(id uint32) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owners[id]
}

// Owners is a copy of all owners of quota ids.
func (l *Ledger) Owners() map[uint32]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.owners)
}

// Disown makes a quota id free again if it is key's.
func (l *Ledger) Disown(key string, id uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owners[id] == key {
		l.disownLocked(id)
	}
}

func (l *Ledger) disownLocked(id uint32) {
	delete(l.owners, id)
	l.ids.Release(id)
}

// Move gives what key was promised, and the quota id if it is key's, to another
// key: that of the same data under another name. What that one was promised is
// replaced. Nothing has the id 0. A second call changes nothing.
func (l *Ledger) Move(key, to string, id uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()

	if bytes, ok := l.promises[key]; ok {
		l.total -= l.promises[to]
		l.promises[to] = bytes
		delete(l.promises, key)
	}

	if l.owners[id] == key {
		l.owners[id] = to
	}
}

// Forget drops the promises and the quota ids of all keys for which the
// functions are true.
func (l *Ledger) Forget(promise, id func(key string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()

	for key := range l.promises {
		if promise(key) {
			l.releaseLocked(key)
		}
	}

	for number, key := range l.owners {
		if id(key) {
			l.disownLocked(number)
		}
	}
}

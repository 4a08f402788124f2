package store

import (
	"sync"
	"time"
)

// watcher compares, for all volumes together, what each should be with what is
// there.
type watcher struct {
	// looking is held during a look: there is one at a time.
	looking sync.Mutex
	count   int

	mu      sync.Mutex
	repairs map[string]*repair // by volume
	running sync.WaitGroup
	// slots bound the repairs of each pool separately: a disk that hangs does
	// not keep other pools' volumes from being brought up.
	slots map[*pool]chan struct{}
	// again asks for a look before its time.
	again   chan struct{}
	hanging hanging
}

// repair is what the watcher does about one volume.
type repair struct {
	running bool
	wait    time.Duration
	began   time.Time
	next    time.Time
}

func (w *watcher) wakeUp() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.again == nil {
		w.again = make(chan struct{}, 1)
	}
	return w.again
}

// answeredLate is called when a filesystem answers after it was given up: it
// may be well again.
func (s *Store) answeredLate(id string) {
	s.watcher.mu.Lock()
	if r := s.watcher.repairs[id]; r != nil {
		r.next = time.Time{}
	}
	s.watcher.mu.Unlock()

	select {
	case s.watcher.wakeUp() <- struct{}{}:
	default:
	}
}

package provisioner

import "sync"

// broadcaster hands the newest value of a key to the workers that wait for that
// key. A worker blocks on it instead of polling: informers publish, and a
// worker subscribes before it reads the cache, so that it misses nothing in
// between.
type broadcaster[T any] struct {
	mu      sync.Mutex
	waiters map[string]map[*subscription[T]]struct{}
}

// subscription receives the newest value of its key. A value that is not taken
// in time is replaced by the next one; values never queue up.
type subscription[T any] struct {
	C      <-chan T
	c      chan T
	cancel func()
}

// Close ends the subscription. A second call does nothing.
func (s *subscription[T]) Close() { s.cancel() }

func (h *broadcaster[T]) subscribe(key string) *subscription[T] {
	c := make(chan T, 1)
	s := &subscription[T]{C: c, c: c}
	s.cancel = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiters[key], s)
		if len(h.waiters[key]) == 0 {
			delete(h.waiters, key)
		}
	}

	h.mu.Lock()
	defer h.mu.Unlock()

	if h.waiters == nil {
		h.waiters = map[string]map[*subscription[T]]struct{}{}
	}
	if h.waiters[key] == nil {
		h.waiters[key] = map[*subscription[T]]struct{}{}
	}

	h.waiters[key][s] = struct{}{}
	return s
}

// publish never blocks.
func (h *broadcaster[T]) publish(key string, value T) {
	h.mu.Lock() // also keeps two publishers from racing for the one place in a channel
	defer h.mu.Unlock()
	for s := range h.waiters[key] {
		select {
		case <-s.c:
		default:
		}
		s.c <- value
	}
}

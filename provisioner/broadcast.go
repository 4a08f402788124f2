package provisioner

import "sync"

// broadcaster hands the newest value of a key to whoever waits for that key. It
// is how a worker blocks on a watch instead of polling: informers publish,
// workers subscribe before they read the cache, so nothing falls between.
type broadcaster[T any] struct {
	mu      sync.Mutex
	waiters map[string]map[*subscription[T]]struct{}
}

// subscription receives the newest value of its key; values that were not taken
// in time are replaced, never queued.
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

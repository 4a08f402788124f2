package store

import "sync/atomic"

// freer frees what is due in the trash: on each filesystem the entries in
// turns, in small steps, with idle I/O priority. It can be stopped at any step
// and carries on from there.
type freer struct {
	store *Store
	poke  chan struct{}
	// sweepAgain is set when something in tmp or of the index could not be
	// cleared away.
	sweepAgain atomic.Bool
	// Counters, for metrics.
	bytes, files atomic.Int64
	// running is not 0 while Run frees in the background.
	running atomic.Int32
}

func newFreer(s *Store) *freer { return &freer{store: s, poke: make(chan struct{}, 1)} }

func (f *freer) wake() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

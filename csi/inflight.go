package csi

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// inFlight is the set of volumes that an operation is in flight on. A second
// one on the same volume is told to come back (spec, "Error Scheme": ABORTED,
// operation pending for volume) instead of queueing behind the first.
type inFlight struct {
	mu   sync.Mutex
	keys map[string]string // by key: the method
}

// begin takes all of the keys, or none.
func (f *inFlight) begin(method string, keys ...string) (end func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()

	for _, key := range keys {
		if other, busy := f.keys[key]; busy {
			return nil, status.Errorf(codes.Aborted, "%s is in flight on %s", other, quote(key))
		}
	}

	if f.keys == nil {
		f.keys = map[string]string{}
	}

	for _, key := range keys {
		f.keys[key] = method
	}

	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, key := range keys {
			delete(f.keys, key)
		}
	}, nil
}

package provisioner

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// libraryView is an informer as the library may have it. The library writes
// into the stores of its informers, behind the watch's back: a PersistentVolume
// that it made, without UID and status, and a claim that it handed back to the
// scheduler, with the resourceVersion of before. Where the watch was faster,
// such an object hides the newer one from all that share the informer until it
// changes once more, which may be never. So the library gets a store of its own
// over the informer's, and the informer is only ever written by its watch.
type libraryView struct {
	cache.SharedIndexInformer
	store *libraryStore
	// remember is told the library's handler (wake.go).
	remember func(cache.ResourceEventHandler)
}

func newLibraryView(
	informer cache.SharedIndexInformer,
	remember func(cache.ResourceEventHandler),
) libraryView {
	return libraryView{informer, &libraryStore{
		Indexer: informer.GetIndexer(),
		own:     map[string]*corev1.PersistentVolumeClaim{},
	}, remember}
}

func (v libraryView) GetStore() cache.Store     { return v.store }
func (v libraryView) GetIndexer() cache.Indexer { return v.store }

func (v libraryView) AddEventHandlerWithResyncPeriod(
	handler cache.ResourceEventHandler,
	period time.Duration,
) (cache.ResourceEventHandlerRegistration, error) {
	v.remember(handler)
	return v.SharedIndexInformer.AddEventHandlerWithResyncPeriod(
		onlyRestless{sparing{handler}},
		period,
	)
}

// sparing keeps from the library what would only make it do again what it is
// doing: a PersistentVolume that it was told to delete goes on being deleted.
// Its own calls do that, or a person's, which adds nothing; it tries again by
// itself what failed. Woken, and at every resync, it looks anyhow.
type sparing struct{ cache.ResourceEventHandler }

// OnUpdate passes on what may be news.
func (s sparing) OnUpdate(before, after any) {
	was, _ := before.(*corev1.PersistentVolume)
	is, _ := after.(*corev1.PersistentVolume)
	if was != nil && is != nil && released(was) && released(is) && is.DeletionTimestamp != nil &&
		was.ResourceVersion != is.ResourceVersion {
		return
	}
	s.ResourceEventHandler.OnUpdate(before, after)
}

// libraryStore reads from an informer's store, and keeps what the library
// writes to itself.
type libraryStore struct {
	cache.Indexer
	mu sync.Mutex
	// own are the claims, by UID, that the library changed and the informer
	// does not show the change of yet.
	own map[string]*corev1.PersistentVolumeClaim
}

// Add forgets the PersistentVolume: the watch brings it, and to make it twice
// is harmless (Local.Provision). Later versions of the library do not add it
// either.
func (s *libraryStore) Add(any) error { return nil }

// Update keeps the claim, whose resourceVersion is that of the claim it was
// made from, until the informer has another.
func (s *libraryStore) Update(obj any) error {
	if claim, ok := obj.(*corev1.PersistentVolumeClaim); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.own[string(claim.UID)] = claim
	}
	return nil
}

// ByIndex is how the library reads claims.
func (s *libraryStore) ByIndex(index, value string) ([]any, error) {
	found, err := s.Indexer.ByIndex(index, value)
	if err != nil {
		return nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for i, obj := range found {
		if p, quiet := obj.(*packed); quiet {
			found[i] = p.whole()
			delete(s.own, string(p.uid))
			continue
		}

		claim, isClaim := obj.(*corev1.PersistentVolumeClaim)
		if !isClaim || s.own[string(claim.UID)] == nil {
			continue
		}

		if own := s.own[string(claim.UID)]; own.ResourceVersion == claim.ResourceVersion {
			found[i] = own // ByIndex returned a slice of its own
		} else {
			delete(s.own, string(claim.UID))
		}
	}

	return found, nil
}

// GetByKey is how the library reads PersistentVolumes.
func (s *libraryStore) GetByKey(key string) (any, bool, error) {
	obj, exists, err := s.Indexer.GetByKey(key)
	if p, quiet := obj.(*packed); quiet {
		obj = p.whole()
	}
	return obj, exists, err
}

// onlyRestless keeps quiet objects from the library's queues: there is nothing
// to provision for a claim that is bound, and nothing to delete behind it.
type onlyRestless struct{ cache.ResourceEventHandler }

func (h onlyRestless) OnAdd(obj any, first bool) {
	if !isPacked(obj) {
		h.ResourceEventHandler.OnAdd(obj, first)
	}
}

func (h onlyRestless) OnUpdate(before, after any) {
	if !isPacked(after) {
		h.ResourceEventHandler.OnUpdate(before, after)
	}
}

// forget drops what is kept of a claim that is gone.
func (s *libraryStore) forget(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.own, uid)
}

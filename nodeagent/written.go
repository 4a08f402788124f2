package nodeagent

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// written holds Volume objects as this process wrote them last, for as long as
// the cache is behind. A change on a disk is noticed at once: compared with a
// status of before it looks like news, and what is written then is refused as a
// conflict, after the disk was looked at once more. The zero value is ready to
// use.
type written struct {
	mu      sync.Mutex
	objects map[string]writtenObject
}

type writtenObject struct {
	*v1alpha1.Volume
	at time.Time
}

// writtenFor is how long what was written counts against the cache. A watch is
// seconds behind; that etcd was restored from a backup of before is not to be
// hidden for longer.
const writtenFor = 30 * time.Second

// note keeps an object as the API server answered it to a write.
func (w *written) note(v *v1alpha1.Volume) {
	v = v.DeepCopy()
	v.ManagedFields = nil

	w.mu.Lock()
	defer w.mu.Unlock()

	if w.objects == nil {
		w.objects = map[string]writtenObject{}
	}
	w.objects[v.Name] = writtenObject{v, time.Now()}
}

// seen lets go of an object that the cache has by now, or one newer.
func (w *written) seen(cached *v1alpha1.Volume) { w.newest(cached) }

// newest returns what is newer: the object in the cache, or what was written.
// It must not be changed.
func (w *written) newest(cached *v1alpha1.Volume) *v1alpha1.Volume {
	w.mu.Lock()
	defer w.mu.Unlock()

	mine, any := w.objects[cached.Name]
	if !any {
		return cached
	}

	// KEP-5504: resource versions of one resource are numbers, in order. Where
	// they are none, the cache is believed.
	order, err := resourceversion.CompareResourceVersion(mine.ResourceVersion,
		cached.ResourceVersion)
	if err != nil || mine.UID != cached.UID || order <= 0 || time.Since(mine.at) > writtenFor {
		delete(w.objects, cached.Name)
		return cached
	}

	return mine.Volume
}

// forget is seen for an object that is gone.
func (w *written) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.objects, name)
}

package provisioner

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Volumes have no attributes that change. A claim that is to be made with a
// VolumeAttributesClass is refused; one that is bound already may be given one
// by any user who may change it, and neither the API server nor a sidecar says
// anything. The expander sees every change of a claim, so it emits an event.

// toldAttributes remembers what claims were told, so that each is told once.
type toldAttributes struct {
	mu    sync.Mutex
	class map[types.UID]string
}

// news reports whether a claim has not been told of the class yet. Without a
// class it forgets the claim.
func (t *toldAttributes) news(claim types.UID, class string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	if class == "" {
		delete(t.class, claim)
		return false
	}

	if t.class[claim] == class {
		return false
	}
	if t.class == nil {
		t.class = map[types.UID]string{}
	}

	t.class[claim] = class
	return true
}

// attributes answers a VolumeAttributesClass on a bound claim of either door.
func (e *expander) attributes(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	class := ""
	if name := claim.Spec.VolumeAttributesClassName; name != nil {
		class = *name
	}

	if class == "" {
		e.told.news(claim.UID, "")
		return
	}

	var pv corev1.PersistentVolume
	if err := e.client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &pv); err != nil {
		return // the claim changes again once its PersistentVolume is there
	}
	if _, ours := originOf(&pv); !ours || !e.told.news(claim.UID, class) {
		return
	}

	e.events.Eventf(claim, nil, corev1.EventTypeWarning, v1alpha1.EventNoAttributes, "Modify",
		"VolumeAttributesClass %q changes nothing: Quarry's volumes have no attributes that "+
			"change; remove it from the claim", class)
}

package provisioner

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// A volume's id is the name of its PersistentVolume and the number of the
// attempt: "pvc-<claim UID>-1". The id follows from what every controller
// knows, so two of them that make the same attempt collide in the API server
// instead of making two volumes. A number whose Volume still exists, as a
// tombstone or otherwise, is never taken again.

// attemptID is the id of the nth attempt for a PersistentVolume; the first is
// 1.
func attemptID(pvName string, n int) string { return fmt.Sprintf("%s-%d", pvName, n) }

// attemptNumber is the inverse of attemptID.
func attemptNumber(pvName, id string) (n int, ok bool) {
	digits, found := strings.CutPrefix(id, pvName+"-")
	if !found || !v1alpha1.IsVolumeID(id) {
		return 0, false
	}

	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || attemptID(pvName, n) != id { // "01" is not 1
		return 0, false
	}

	return n, true
}

// plan is how to go on with a claim, given the Volumes that exist for its
// PersistentVolume.
type plan struct {
	// use is the Volume to go on with; nil: make one called next.
	use  *v1alpha1.Volume
	next string
	// abandon are Volumes to give up first: no claim was served from them, and
	// they are on another node, refused, or made for another wish.
	abandon []*v1alpha1.Volume
}

// planAttempt decides which Volume to go on with. It always goes on with a
// Volume that a claim may have been served from, wherever it is: the Volume may
// hold data, and only its PersistentVolume is to be written (again). It leaves
// a second Volume of that kind to the sweep, which learns from the
// PersistentVolume which of the two it was.
func planAttempt(pvName string, want *v1alpha1.VolumeSpec, existing []v1alpha1.Volume) plan {
	var p plan
	highest := 0
	for i := range existing {
		v := &existing[i]
		if n, ok := attemptNumber(pvName, v.Name); ok {
			highest = max(highest, n)
		}
		switch {
		case v.Spec.DesiredState != v1alpha1.DesiredPresent:
			// A tombstone. It holds its number until the agent confirmed and
			// the Volume is gone.
		case isServed(v):
			switch {
			case p.use == nil:
				p.use = v
			case !isServed(p.use):
				p.abandon = append(p.abandon, p.use)
				p.use = v
			case v.Spec.Published && !p.use.Spec.Published:
				p.use = v
			}
		case p.use == nil && v.Spec.NodeName == want.NodeName && !isRefused(v) &&
			sameWish(&v.Spec, want):
			p.use = v
		default:
			p.abandon = append(p.abandon, v)
		}
	}

	p.next = attemptID(pvName, highest+1)
	return p
}

// sameWish compares what is fixed at creation.
func sameWish(have, want *v1alpha1.VolumeSpec) bool {
	return equality.Semantic.DeepEqual(fixedAtCreation(have), fixedAtCreation(want))
}

// fixedAtCreation is a spec without what may change, or need not be the same,
// in a volume that exists. A volume without a cluster is compared by a digest
// of its spec (digestOf in nodeagent/standalone), which leaves out what this
// does as far as it is set there.
func fixedAtCreation(spec *v1alpha1.VolumeSpec) v1alpha1.VolumeSpec {
	fixed := *spec
	fixed.DesiredState, fixed.Published = "", false
	fixed.Claim, fixed.Admission, fixed.Attributes = nil, nil, nil
	fixed.ReclaimPolicy, fixed.Deletion = "", v1alpha1.DeletionPolicy{}
	fixed.Parameters, fixed.SpreadGroup = nil, "" // what of them is fixed is in the other fields
	return fixed
}

// isServed reports whether a claim may have been given the volume: it was ready
// once, and from that moment on its PersistentVolume may exist. Only the sweep
// ends that, with proof that there is none. A volume that is lost before a
// claim is known to have had it is a failed attempt like any other.
func isServed(v *v1alpha1.Volume) bool {
	return v.Spec.Published || v.Status.Phase == v1alpha1.VolumeReady ||
		v.Status.Phase == v1alpha1.VolumeUnavailable
}

// WasReady reports whether the volume was ready once, also if it is lost by
// now.
func WasReady(v *v1alpha1.Volume) bool {
	return isServed(v) || v.Status.Phase == v1alpha1.VolumeLost
}

// isReady reports whether the volume can be used.
func isReady(v *v1alpha1.Volume) bool {
	return meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.ConditionReady)
}

// isRefused reports whether the attempt is over, and the agent holds nothing of
// it.
func isRefused(v *v1alpha1.Volume) bool {
	return v.Status.Phase == v1alpha1.VolumeRefused || v.Status.Phase == v1alpha1.VolumeLost ||
		v.Status.Phase == v1alpha1.VolumeDeleted
}

// readyCondition returns the reason and message of the condition Ready, both
// empty if it is not there.
func readyCondition(conditions []metav1.Condition) (reason, message string) {
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); c != nil {
		return c.Reason, c.Message
	}
	return "", ""
}

// isGone reports whether the agent has done what desiredState asks: trashed or
// deleted.
func isGone(v *v1alpha1.Volume) bool {
	switch v.Spec.DesiredState {
	case v1alpha1.DesiredDeleted:
		return v.Status.Phase == v1alpha1.VolumeDeleted
	case v1alpha1.DesiredTrashed:
		return v.Status.Phase == v1alpha1.VolumeTrashed || v.Status.Phase == v1alpha1.VolumeDeleted
	}
	return false
}

package provisioner

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// surveyCache holds what a look at all nodes, or at the pods of a namespace
// that wait for the scheduler, found. Many claims share it for surveyAge.
type surveyCache struct {
	door *frontDoor
	now  func() time.Time

	mu      sync.Mutex
	classes map[string]classSurvey
	pods    map[string]podSurvey
}

// surveyAge is how old an answer may be.
const surveyAge = 2 * time.Second

// classSurvey is what is known of a class.
type classSurvey struct {
	at      time.Time
	version string
	// largest is the size of the largest volume that any node can take, in
	// bytes.
	largest int64
	// none is what is wrong with the nodes for every volume that is larger.
	none *noNodeError
}

// podSurvey are the claims of a namespace that pods without a node use.
type podSurvey struct {
	at     time.Time
	claims map[string]bool
}

// room returns the size of the largest volume of a class that any node can
// take, and the error that a larger one gets.
func (s *surveyCache) room(
	ctx context.Context,
	class *storagev1.StorageClass,
	p parameters.Set,
) (int64, *noNodeError, error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	known, is := s.classes[class.Name]
	if is && known.version == class.ResourceVersion && s.now().Sub(known.at) < surveyAge {
		return known.largest, known.none, nil
	}

	pl, err := s.door.placement(ctx, nil)
	if err != nil {
		return 0, nil, err
	}

	known = classSurvey{
		at:      s.now(),
		version: class.ResourceVersion,
		largest: pl.largest(class, p),
	}
	_, err = pl.pick(class, p, known.largest+1)
	none, is := errors.AsType[*noNodeError](err)
	if !is {
		return 0, nil, err
	}

	known.none = none
	if s.classes == nil {
		s.classes = map[string]classSurvey{}
	}

	s.classes[class.Name] = known
	return known.largest, known.none, nil
}

// waited reports whether a pod without a node uses a claim. The API server
// answers from what it has at hand.
func (s *surveyCache) waited(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	known, is := s.pods[claim.Namespace]
	if !is || s.now().Sub(known.at) >= surveyAge {
		var list corev1.PodList
		err := s.door.live.List(ctx, &list, &client.ListOptions{
			Namespace:     claim.Namespace,
			FieldSelector: fields.OneTermEqualSelector("spec.nodeName", ""),
			Raw:           &metav1.ListOptions{ResourceVersion: "0"},
		})
		if err != nil {
			return false, &apiError{"list the pods of namespace " + claim.Namespace, err}
		}

		known = podSurvey{at: s.now(), claims: map[string]bool{}}
		for i := range list.Items {
			if pod := &list.Items[i]; waitsForNode(pod) {
				for _, name := range claimNames(pod) {
					known.claims[name] = true
				}
			}
		}

		s.forgetOld()
		s.pods[claim.Namespace] = known
	}

	return known.claims[claim.Name], nil
}

// forgetOld drops what is too old to be used.
func (s *surveyCache) forgetOld() {
	if s.pods == nil {
		s.pods = map[string]podSurvey{}
	}
	for namespace, known := range s.pods {
		if s.now().Sub(known.at) >= surveyAge {
			delete(s.pods, namespace)
		}
	}
}

// waitsForNode reports whether the scheduler is still to find a node for a pod.
func waitsForNode(pod *corev1.Pod) bool {
	over := pod.DeletionTimestamp != nil ||
		slices.Contains([]corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed}, pod.Status.Phase)
	return !over && pod.Spec.NodeName == ""
}

// largest is the largest volume of a class that any node can take, in bytes.
func (pl placement) largest(class *storagev1.StorageClass, p parameters.Set) int64 {
	most := int64(0)
	for i := range pl.nodes {
		node := &pl.nodes[i]
		if !inTopologies(node, class.AllowedTopologies) || !isNodeReady(node) {
			continue
		}
		if ready, _ := pl.ready(node.Name); ready {
			most = max(most, roomIn(pl.pools[node.Name], p).Largest)
		}
	}
	return most
}

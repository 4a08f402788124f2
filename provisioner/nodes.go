package provisioner

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	corelisters "k8s.io/client-go/listers/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// nodeExists asks the API server itself: that a node is gone is never concluded
// from a cache.
func nodeExists(ctx context.Context, live client.Reader, name string) (bool, error) {
	var node corev1.Node
	err := live.Get(ctx, client.ObjectKey{Name: name}, &node)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, &apiError{"read Node " + name, err}
	}

	return true, nil
}

// getNode returns a node from the cache, or from the API server if the cache
// does not have it (yet). The error is a *nodeGoneError or an *apiError.
func getNode(ctx context.Context, cached, live client.Reader, name string) (*corev1.Node, error) {
	node := &corev1.Node{}
	err := cached.Get(ctx, client.ObjectKey{Name: name}, node)
	if apierrors.IsNotFound(err) {
		err = live.Get(ctx, client.ObjectKey{Name: name}, node)
	}
	if apierrors.IsNotFound(err) {
		return nil, &nodeGoneError{name}
	}
	if err != nil {
		return nil, &apiError{"read Node " + name, err}
	}

	return node, nil
}

// everyNode is the node lister given to the library. The library takes the
// selected node away from a claim as soon as the lister does not find it, which
// would leave a claim that no pod uses without a node for ever, and the
// half-made volume on the old node unaccounted for. So it finds every node, and
// Provision decides by a live read.
type everyNode struct{ corelisters.NodeLister }

func (l everyNode) Get(name string) (*corev1.Node, error) {
	node, err := l.NodeLister.Get(name)
	if apierrors.IsNotFound(err) {
		node = &corev1.Node{}
		node.Name = name
		return node, nil // no UID: not a node that was seen
	}
	return node, err
}

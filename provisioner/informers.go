package provisioner

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// onNode calls f with a node that came, went, or changed in a way that matters
// to a volume. Heartbeats do not.
func onNode(f func(name string)) toolscache.ResourceEventHandler {
	h := onEvery(func(n *corev1.Node) { f(n.Name) }).(toolscache.ResourceEventHandlerFuncs)
	h.UpdateFunc = func(before, after any) {
		b, a := before.(*corev1.Node), after.(*corev1.Node)
		if b.UID != a.UID || isNodeReady(b) != isNodeReady(a) || isTainted(b) != isTainted(a) ||
			!labels.Equals(b.Labels, a.Labels) {
			f(a.Name)
		}
	}
	return h
}

// onEvery calls f with the newest state of an object that came, changed or
// went.
func onEvery[T client.Object](f func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f(obj.(T)) },
		UpdateFunc: func(_, obj any) { f(obj.(T)) },
		DeleteFunc: func(obj any) { lastState(obj, f) },
	}
}

// onDelete calls f with the last known state of an object that went.
func onDelete[T client.Object](f func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) { lastState(obj, f) }}
}

func lastState[T client.Object](obj any, f func(T)) {
	if o, ok := whole[T](obj); ok {
		f(o)
	}
}

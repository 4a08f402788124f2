package provisioner

import (
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// agentWatch knows which nodes' agents are ready, from a watch on the agents'
// pods. It is an event handler of that informer: register it with
// AddEventHandler.
type agentWatch struct {
	mu   sync.Mutex
	pods map[string]map[string]*corev1.Pod // node -> pod name -> pod

	changed broadcaster[bool] // by node: ready or not

	// OnChange is called, without locks held, with a node whose agent became
	// ready or stopped being so.
	OnChange func(node string, ready bool)
}

// Ready reports whether the node's agent is ready, and why not.
func (a *agentWatch) Ready(node string) (ready bool, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.readyLocked(node)
}

func (a *agentWatch) readyLocked(node string) (bool, string) {
	why := "no agent pod runs there"
	for _, pod := range a.pods[node] {
		if pod.DeletionTimestamp != nil {
			why = fmt.Sprintf("pod %s is shutting down", pod.Name)
			continue
		}
		if isPodReady(pod) {
			return true, ""
		}
		why = fmt.Sprintf("pod %s is not ready%s", pod.Name, troubleOf(pod))
	}
	return false, why
}

// ReadySince is when the node's agent became ready; zero if it is not, or that
// is not known.
func (a *agentWatch) ReadySince(node string) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()

	var since time.Time
	for _, pod := range a.pods[node] {
		if pod.DeletionTimestamp != nil {
			continue
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue &&
				c.LastTransitionTime.After(since) {
				since = c.LastTransitionTime.Time
			}
		}
	}

	return since
}

func isPodReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// troubleOf is the reason of the first container that is held up, with a comma
// before it.
func troubleOf(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			return ", " + s.State.Waiting.Reason
		case s.State.Terminated != nil && s.State.Terminated.Reason != "":
			return ", " + s.State.Terminated.Reason
		}
	}
	return ""
}

// update records a pod, or its end, and publishes a change of its node's
// readiness.
func (a *agentWatch) update(pod *corev1.Pod, gone bool) {
	node := pod.Spec.NodeName
	if node == "" {
		return // not scheduled yet
	}

	a.mu.Lock()
	before, _ := a.readyLocked(node)
	if gone {
		delete(a.pods[node], pod.Name)
		if len(a.pods[node]) == 0 {
			delete(a.pods, node)
		}
	} else {
		if a.pods == nil {
			a.pods = map[string]map[string]*corev1.Pod{}
		}
		if a.pods[node] == nil {
			a.pods[node] = map[string]*corev1.Pod{}
		}
		a.pods[node][pod.Name] = pod
	}

	after, _ := a.readyLocked(node)
	a.mu.Unlock()
	if before == after {
		return
	}

	a.changed.publish(node, after)
	if a.OnChange != nil {
		a.OnChange(node, after)
	}
}

// OnAdd, OnUpdate and OnDelete implement cache.ResourceEventHandler.
func (a *agentWatch) OnAdd(obj any, _ bool) {
	if pod, ok := obj.(*corev1.Pod); ok {
		a.update(pod, false)
	}
}

// OnUpdate is called with a pod's old and new state.
func (a *agentWatch) OnUpdate(_, obj any) { a.OnAdd(obj, false) }

// OnDelete is called with a pod's last known state.
func (a *agentWatch) OnDelete(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		a.update(pod, true)
	}
}

package provisioner

import (
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
)

// intern returns a string that lies in memory once, however many have it.
func intern(s string) string { return unique.Make(s).Value() }

// trimNode keeps of a node what this package reads: its name and labels,
// whether it is ready, and what keeps pods away. A kubelet writes a list of
// images into its node that is longer than all of that. Nodes are never
// written, so nothing gets lost.
func trimNode(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}

	meta := node.ObjectMeta
	node.ObjectMeta.ManagedFields, node.Annotations, node.OwnerReferences = nil, nil, nil
	node.Labels = shared(meta.Labels)
	node.Spec = corev1.NodeSpec{
		Taints:        slices.Clip(node.Spec.Taints),
		Unschedulable: node.Spec.Unschedulable,
	}
	var status corev1.NodeStatus
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			c.Reason, c.Message = intern(c.Reason), intern(c.Message)
			status.Conditions = []corev1.NodeCondition{c}
		}
	}

	node.Status = status
	return node, nil
}

// trimPod keeps of an agent's pod where it is, and whether it is ready or why
// not.
func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}

	pod.ObjectMeta.ManagedFields, pod.Annotations, pod.OwnerReferences = nil, nil, nil
	pod.Labels = shared(pod.Labels)
	pod.Spec = corev1.PodSpec{NodeName: pod.Spec.NodeName}
	status := corev1.PodStatus{Phase: pod.Status.Phase}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			status.Conditions = []corev1.PodCondition{c}
		}
	}

	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Waiting != nil || s.State.Terminated != nil {
			status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
				Name:  s.Name,
				State: s.State,
			})
		}
	}

	pod.Status = status
	return pod, nil
}

// shared interns the keys and values of a map, of which each cluster has few.
func shared(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[intern(k)] = intern(v)
	}
	return out
}

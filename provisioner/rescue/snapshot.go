package rescue

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Disk is one pool as the agent of its node reads it off the disk.
type Disk struct {
	Node string
	// Pool is the pool's name in the agent's configuration, and Path where it
	// is.
	Pool, Path string
	// UID is the identity of the disk, and ClusterID that of the cluster it
	// belongs to; empty: of none.
	UID, ClusterID string
	// Error says why there is nothing to be read; the rest is empty then.
	Error string
	// Missing: there is no disk, which is all that there is to know. Otherwise
	// an Error may hide one.
	Missing bool
	Volumes []Found
}

// Found is a volume on a disk.
type Found struct {
	// Volume is the record that the disk's own makes: published, wanted as it
	// is, and its status what is there.
	Volume *v1alpha1.Volume
	// InTrash: it was deleted, and is kept for Remaining more; 0: its space is
	// being freed.
	InTrash   bool
	Remaining time.Duration
}

// Snapshot is what there is, on disk and in the cluster, at one time.
type Snapshot struct {
	// ClusterID is the UID of the cluster's namespace kube-system.
	ClusterID string
	Disks     []Disk
	// Unread says of each node whose disks could not be read, why.
	Unread map[string]string

	Nodes      map[string]*corev1.Node
	Pools      map[string]*v1alpha1.Pool
	Volumes    map[string]*v1alpha1.Volume
	PVs        map[string]*corev1.PersistentVolume
	Claims     map[client.ObjectKey]*corev1.PersistentVolumeClaim
	Classes    map[string]bool
	Namespaces map[string]bool
	// Pods are those that hold, or may hold, a claim's volume: they have a node
	// and have not ended. By claim.
	Pods map[client.ObjectKey][]Pod
}

// Pod is a pod that uses a claim.
type Pod struct{ Name, Node string }

// Take reads the cluster and puts it beside the disks that were read.
// Everything is read live, the Volumes last: one that is written meanwhile is
// seen, and one that is deleted meanwhile is met again when the plan is
// applied.
func (r *Rescuer) Take(
	ctx context.Context,
	disks []Disk,
	unread map[string]string,
) (*Snapshot, error) {
	s := &Snapshot{
		Disks:      disks,
		Unread:     unread,
		Classes:    map[string]bool{},
		Namespaces: map[string]bool{},
		Claims:     map[client.ObjectKey]*corev1.PersistentVolumeClaim{},
		Pods:       map[client.ObjectKey][]Pod{},
	}
	var system corev1.Namespace
	if err := r.Client.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem},
		&system); err != nil {
		return nil, fmt.Errorf("read which cluster this is: %w", err)
	}

	s.ClusterID = string(system.UID)
	var (
		namespaces corev1.NamespaceList
		classes    storagev1.StorageClassList
		nodes      corev1.NodeList
		pods       corev1.PodList
		claims     corev1.PersistentVolumeClaimList
		pvs        corev1.PersistentVolumeList
		pools      v1alpha1.PoolList
		volumes    v1alpha1.VolumeList
	)
	for _, list := range []client.ObjectList{&namespaces, &classes, &nodes, &pods, &claims, &pvs,
		&pools, &volumes} {
		if err := r.Client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}

	for _, ns := range namespaces.Items {
		s.Namespaces[ns.Name] = ns.DeletionTimestamp == nil
	}

	for _, class := range classes.Items {
		s.Classes[class.Name] = true
	}

	for i := range claims.Items {
		s.Claims[client.ObjectKeyFromObject(&claims.Items[i])] = &claims.Items[i]
	}

	s.Nodes, s.PVs = byName(nodes.Items), byName(pvs.Items)
	s.Pools, s.Volumes = byName(pools.Items), byName(volumes.Items)
	for i := range pods.Items {
		for _, claim := range heldClaims(&pods.Items[i]) {
			s.Pods[claim] = append(s.Pods[claim], Pod{
				Name: pods.Items[i].Name,
				Node: pods.Items[i].Spec.NodeName,
			})
		}
	}

	return s, nil
}

func byName[T any, P interface {
	*T
	client.Object
}](items []T) map[string]P {
	m := make(map[string]P, len(items))
	for i := range items {
		m[P(&items[i]).GetName()] = &items[i]
	}
	return m
}

// heldClaims are the claims whose volumes a pod may have mounted: it has a node
// and has not ended. That it is being deleted does not count: until its
// kubelet, or a person, says so, its containers may run.
func heldClaims(pod *corev1.Pod) []client.ObjectKey {
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded ||
		pod.Status.Phase == corev1.PodFailed {
		return nil
	}

	var out []client.ObjectKey
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, client.ObjectKey{
				Namespace: pod.Namespace,
				Name:      v.PersistentVolumeClaim.ClaimName,
			})
		case v.Ephemeral != nil:
			out = append(out, client.ObjectKey{
				Namespace: pod.Namespace,
				Name:      pod.Name + "-" + v.Name,
			})
		}
	}

	return out
}

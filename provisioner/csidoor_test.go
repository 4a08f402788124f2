package provisioner

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

func TestPVOf(t *testing.T) {
	for id, want := range map[string]string{"pvc-1": "pvc", "pvc-0a-2": "pvc-0a", "pvc": "", "pvc-01": "", "pvc-x": "",
		"": "", "-1": ""} {
		require.Equal(t, want, pvOf(id), id)
	}
}

// door starts a controller and returns its CSI front door.
func (k *cluster) door() *CSI {
	k.t.Helper()
	doors := make(chan *CSI, 1)
	k.start(func(o *Options) {
		o.ServeCSI = func(ctx context.Context, door *CSI) error {
			doors <- door
			<-ctx.Done()
			return nil
		}
	})
	select {
	case d := <-doors:
		return d
	case <-time.After(patience):
		k.t.Fatal("the CSI front door was not opened")
		return nil
	}
}

// testCSI calls the front door as package csi does for the sidecars.
func testCSI(t *testing.T, k *cluster) {
	a, b := k.node("a"), k.node("b")
	k.agent(a, "1Gi")
	agentB := k.agent(b, "10Gi")
	door := k.door()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	name := k.name("pvc")
	wish := func(size string, class map[string]string) v1alpha1.VolumeSpec {
		w := v1alpha1.VolumeSpec{DesiredState: v1alpha1.DesiredPresent, Provisioner: v1alpha1.CSIDriver,
			VolumeMode:  corev1.PersistentVolumeFilesystem,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: resource.MustParse(size)}
		_, err := parameters.Apply(class, &w)
		require.NoError(t, err)
		return w
	}
	reason := func(err error) string {
		require.Error(t, err)
		return judge(err).Reason
	}
	attempts := func() []v1alpha1.Volume {
		list, err := door.records().Of(ctx, name)
		require.NoError(t, err)
		return list
	}

	// Refused on one node, the same name on another is another attempt.
	_, err := door.Ensure(ctx, name, wish("2Gi", nil), []string{a})
	require.Equal(t, v1alpha1.ReasonInsufficientCapacity, reason(err))
	require.ErrorContains(t, err, "kubectl get pools.quarry.storage", "the error carries the advice")
	v, err := door.Ensure(ctx, name, wish("2Gi", nil), []string{b})
	require.NoError(t, err)
	require.True(t, isServed(v))
	require.Equal(t, b, v.Spec.NodeName)
	again, err := door.Ensure(ctx, name, wish("2Gi", nil), []string{b})
	require.NoError(t, err)
	require.Equal(t, v.Name, again.Name)
	_, err = door.Ensure(ctx, name, wish("2Gi", map[string]string{"mode": "0700"}), []string{b})
	require.Equal(t, v1alpha1.ReasonAlreadyExists, reason(err))
	k.until("the refused attempt is gone", func() string { return differs(len(attempts()), 1) })

	// Any node will do: the one with room is taken. No node: nothing is
	// written.
	any, err := door.Ensure(ctx, k.name("any"), wish("3Gi", nil), []string{a, b})
	require.NoError(t, err)
	require.Equal(t, b, any.Spec.NodeName)
	_, err = door.Ensure(ctx, k.name("none"), wish("100Gi", nil), []string{a, b})
	require.Equal(t, v1alpha1.ReasonNoSuitableNode, reason(err))
	_, err = door.Ensure(ctx, k.name("none"), wish("1Gi", nil), []string{"no-such-node"})
	require.Equal(t, v1alpha1.ReasonNodeGone, reason(err))
	k.agentReady(a, false)
	k.until("the agent's end is known", func() string {
		ready, _ := door.agents.Ready(a)
		return differs(ready, false)
	})
	_, err = door.Ensure(ctx, k.name("none"), wish("1Gi", nil), []string{a})
	require.Equal(t, v1alpha1.ReasonAgentNotReady, reason(err))

	available, largest, err := door.Room(ctx, b, wish("1Gi", nil))
	require.NoError(t, err)
	require.Equal(t, available, largest)
	require.LessOrEqual(t, largest, int64(5<<30))

	got, err := door.Get(ctx, v.Name)
	require.NoError(t, err)
	require.Equal(t, v.UID, got.UID)
	_, err = door.Get(ctx, "no-such-volume-1")
	require.Equal(t, v1alpha1.ReasonVolumeNotFound, err.(interface{ Reason() string }).Reason())
	list, err := door.List(ctx)
	require.NoError(t, err)
	ours := 0
	for _, l := range list {
		if l.Name == v.Name || l.Name == any.Name {
			ours++
		}
	}
	require.Equal(t, 2, ours)

	// Grown; too far, which is infeasible; and back to what can be had.
	grown, err := door.Expand(ctx, v.Name, 4<<30)
	require.NoError(t, err)
	require.EqualValues(t, 4<<30, grown.Status.Capacity.Value())
	_, err = door.Expand(ctx, v.Name, 40<<30)
	require.ErrorContains(t, err, "no room to grow")
	require.Equal(t, v1alpha1.ReasonResizeInfeasible, reason(err))
	grown, err = door.Expand(ctx, v.Name, 5<<30)
	require.NoError(t, err)
	require.EqualValues(t, 5<<30, grown.Status.Capacity.Value())

	// Bound, then in use, then deleted; what is not there is deleted already.
	meta := clusterMeta(name)
	// External-provisioner's; it is not running here.
	meta.Annotations = map[string]string{annProvisionedBy: v1alpha1.CSIDriver}
	pv := &corev1.PersistentVolume{ObjectMeta: meta, Spec: corev1.PersistentVolumeSpec{
		Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")},
		AccessModes:                   v.Spec.AccessModes,
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, StorageClassName: "none",
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: v1alpha1.CSIDriver, VolumeHandle: v.Name,
			VolumeAttributes: map[string]string{v1alpha1.AnnotationNode: "where it was made, long ago"}}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: v1alpha1.TopologyNode,
					Operator: corev1.NodeSelectorOpIn, Values: []string{b}}}}}}},
		ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: k.namespace, Name: "data"},
	}}
	k.make(pv)
	claim := k.claim("data", "none", "5Gi", "", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name })
	k.bound("data")
	require.Equal(t, v1alpha1.ReasonVolumeInUse, reason(door.Delete(ctx, v.Name)))
	require.NoError(t, k.Get(ctx, client.ObjectKeyFromObject(got), got))
	require.Equal(t, v1alpha1.DesiredPresent, got.Spec.DesiredState, "a volume whose PersistentVolume is bound "+
		"is not deleted")
	require.NoError(t, k.Delete(ctx, claim))
	k.until("the PersistentVolume is released", func() string {
		require.NoError(t, k.Get(ctx, client.ObjectKeyFromObject(pv), pv))
		return differs(pv.Status.Phase, corev1.VolumeReleased)
	})
	require.Equal(t, v1alpha1.ReasonNotOurs, reason(door.Delete(ctx, v.Name)),
		"the PersistentVolume's policy is Retain")
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	require.NoError(t, k.Update(ctx, pv))
	agentB.set(func() { agentB.inUse[v.Name] = true })
	require.Equal(t, v1alpha1.ReasonVolumeInUse, reason(door.Delete(ctx, v.Name)))
	agentB.set(func() { agentB.inUse[v.Name] = false })
	require.NoError(t, door.Delete(ctx, v.Name))
	k.gone(v)
	require.NoError(t, door.Delete(ctx, any.Name))
	require.NoError(t, door.Delete(ctx, any.Name))
	require.NoError(t, door.Delete(ctx, "no-such-volume-1"))
	require.NoError(t, k.Delete(ctx, pv))
}

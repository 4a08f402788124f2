package provisioner

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func testCapacity(t *testing.T, k *cluster) {
	full, roomy, down := k.node("full"), k.node("roomy"), k.node("down")
	k.agent(full, "1Gi")
	a := k.agent(roomy, "10Gi")
	k.agent(down, "100Gi")
	k.agentReady(down, false)
	driver := &storagev1.CSIDriver{ObjectMeta: clusterMeta(v1alpha1.LocalProvisioner),
		Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
	k.make(driver)
	t.Cleanup(func() { _ = k.Delete(context.Background(), driver) })
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.until("the scheduler heeds capacity", func() string {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(driver), driver))
		return differs(driver.Spec.StorageCapacity != nil && *driver.Spec.StorageCapacity, true)
	})
	published := func() map[string]string {
		var list storagev1.CSIStorageCapacityList
		require.NoError(t, k.List(t.Context(), &list, client.InNamespace(systemNamespace)))
		sizes := map[string]string{}
		for _, c := range list.Items {
			if c.StorageClassName == class {
				sizes[c.NodeTopology.MatchLabels[corev1.LabelHostname]] = c.MaximumVolumeSize.String()
			}
		}
		return sizes
	}
	require.Equal(t, map[string]string{"host-" + full: "1Gi", "host-" + roomy: "10Gi", "host-" + down: "0"},
		published())

	for _, name := range []string{"one", "two", "three"} { // two fit
		k.claim(name, class, "4Gi", "")
		k.pod("user-of-"+name, name)
	}
	bound := func() (n int) {
		var list corev1.PersistentVolumeClaimList
		require.NoError(t, k.List(t.Context(), &list, client.InNamespace(k.namespace)))
		for _, c := range list.Items {
			if c.Status.Phase == corev1.ClaimBound {
				n++
			}
		}
		return n
	}
	k.until("two are bound", func() string { return differs(bound(), 2) })
	k.until("what is left is published", func() string { return differs(published()["host-"+roomy], "2Gi") })
	require.Equal(t, 2, bound())
	var waiting corev1.PersistentVolumeClaimList
	require.NoError(t, k.List(t.Context(), &waiting, client.InNamespace(k.namespace)))
	for _, c := range waiting.Items {
		if c.Status.Phase == corev1.ClaimPending {
			k.warned(c.Name, "no node can take the volume")
		}
	}
	a.set(func() { a.size = 20 << 30 })
	k.until("the third is bound", func() string { return differs(bound(), 3) })

	k.agentReady(down, true)
	k.until("a ready agent is published", func() string { return differs(published()["host-"+down], "100Gi") })
	require.NoError(t, k.Delete(t.Context(), &storagev1.StorageClass{ObjectMeta: clusterMeta(class)}))
	k.until("the class's objects are gone", func() string { return differs(len(published()), 0) })
}

func testGroup(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	a.set(func() { a.paused = true })
	class := k.class("wait", waitFirst, nil)
	k.start()
	one, two := k.claim("one", class, "1Gi", ""), k.claim("two", class, "1Gi", "")
	k.claim("unrelated", class, "1Gi", "")
	k.pod("user", "one", "two")
	for _, c := range []*corev1.PersistentVolumeClaim{one, two} {
		k.until("claim "+c.Name+" is recorded", func() string { return differs(len(k.volumes(c)), 1) })
		require.ElementsMatch(t, []types.UID{one.UID, two.UID}, k.volumes(c)[0].Spec.Admission.Claims)
	}
	a.set(func() { a.paused = false })
	k.bound("one")
	k.bound("two")
}

func testExpansion(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.claim("data", class, "1Gi", node)
	claim, pv := k.bound("data")
	ask := func(size string) {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
		base := claim.DeepCopy()
		claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
		require.NoError(t, k.Patch(t.Context(), claim, client.MergeFrom(base)))
	}
	grown := func(size string) {
		k.until("the claim is "+size, func() string {
			require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
			return differs(claim.Status.Capacity.Storage().String(), size)
		})
		for _, c := range claim.Status.Conditions {
			require.Equal(t, corev1.PersistentVolumeClaimConditionType("Unused"), c.Type,
				"Kubernetes' own, of a claim without a pod: %v", c)
		}
		require.Equal(t, size, claim.Status.AllocatedResources.Storage().String(),
			"it stays, as external-resizer leaves it")
		require.Empty(t, claim.Status.AllocatedResourceStatuses)
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(pv), pv))
		require.Equal(t, size, pv.Spec.Capacity.Storage().String())
	}
	ask("2Gi")
	grown("2Gi")
	ask("20Gi")
	k.warned("data", "cannot be resized to 20Gi: no room to grow")
	k.until("the claim says so", func() string {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
		return differs(claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage],
			corev1.PersistentVolumeClaimControllerResizeInfeasible)
	})
	require.Equal(t, "2Gi", claim.Status.Capacity.Storage().String())
	ask("3Gi")
	grown("3Gi")
	ask("18446744073709551617") // 1, in 64 bits
	k.warned("data", "no volume is larger than 1Ei")
	ask("4Gi")
	grown("4Gi")

	// Its agent fails, and says why; then the disk is well again.
	a.set(func() { a.failGrowth = "input/output error" })
	ask("5Gi")
	k.warned("data", "Not resized to 5Gi yet: node "+node+", which tries again: input/output error")
	a.set(func() { a.failGrowth = "" })
	grown("5Gi")

	// Nobody else says that a VolumeAttributesClass does nothing.
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
	base := claim.DeepCopy()
	claim.Spec.VolumeAttributesClassName = new("gold")
	require.NoError(t, k.Patch(t.Context(), claim, client.MergeFrom(base)))
	k.warned("data", `VolumeAttributesClass "gold" changes nothing`)
}

// testPathChanged is a pool whose path was changed: the claim is told, growth
// says why it waits, and deletion works.
func testPathChanged(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.claim("data", class, "1Gi", node)
	claim, pv := k.bound("data")
	v := k.volumes(claim)[0]
	a.set(func() { a.path = "/mnt/new" })
	k.warned("data", "volume "+v.Name+" is at /mnt/new/"+v.Name+"/mount/data now")
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
	base := claim.DeepCopy()
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("2Gi")
	require.NoError(t, k.Patch(t.Context(), claim, client.MergeFrom(base)))
	k.warned("data", "Not resized to 2Gi yet: volume "+v.Name+" is at /mnt/new/")
	require.NoError(t, k.Delete(t.Context(), claim))
	k.gone(pv)
	k.gone(&v)
}

// testTopologies is a claim that names a node which its class does not allow.
func testTopologies(t *testing.T, k *cluster) {
	east, west := k.node("east"), k.node("west")
	k.agent(east, "10Gi")
	k.agent(west, "10Gi")
	class := &storagev1.StorageClass{ObjectMeta: clusterMeta(k.name("east-only")),
		Provisioner: v1alpha1.LocalProvisioner, VolumeBindingMode: new(waitFirst),
		AllowedTopologies: []corev1.TopologySelectorTerm{{
			MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
				{Key: corev1.LabelHostname, Values: []string{"host-" + east}}}}}}
	k.make(class)
	t.Cleanup(func() { _ = k.Delete(context.Background(), class) })
	k.start()
	claim := k.claim("data", class.Name, "1Gi", west)
	k.warned("data", "node "+west+" is not in the allowedTopologies of StorageClass "+class.Name)
	require.Empty(t, k.volumes(claim))
	k.claim("right", class.Name, "1Gi", east)
	k.bound("right")
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
	require.Equal(t, west, claim.Annotations[annSelectedNode], "no scheduler is asked again and again")
}

func testRace(t *testing.T, k *cluster) {
	a := k.agent(k.node("a"), "10Gi")
	b := k.agent(k.node("b"), "10Gi")
	driver := &storagev1.CSIDriver{ObjectMeta: clusterMeta(v1alpha1.LocalProvisioner),
		Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
	k.make(driver)
	t.Cleanup(func() { _ = k.Delete(context.Background(), driver) })
	class := k.class("wait", waitFirst, nil)
	k.start()
	const claims, fit = 40, 20
	for i := range claims {
		name := fmt.Sprintf("data-%d", i)
		k.claim(name, class, "1Gi", "")
		k.pod("user-of-"+name, name)
	}
	var list corev1.PersistentVolumeClaimList
	bound := func() (n int) {
		require.NoError(t, k.List(t.Context(), &list, client.InNamespace(k.namespace)))
		for _, c := range list.Items {
			if c.Status.Phase == corev1.ClaimBound {
				n++
			}
		}
		return n
	}
	settled := func(want int) {
		k.until("claims bound", func() string { return differs(bound(), want) })
		k.until("no attempt is left over", func() string {
			var volumes v1alpha1.VolumeList
			require.NoError(t, k.List(t.Context(), &volumes))
			mine := 0
			for _, v := range volumes.Items {
				if v.Spec.StorageClassName == class {
					mine++
				}
			}
			return differs(mine, want)
		})
	}
	settled(fit)
	a.set(func() { a.size = 20 << 30 })
	b.set(func() { b.size = 20 << 30 })
	settled(claims)
}

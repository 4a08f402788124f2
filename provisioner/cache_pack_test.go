package provisioner

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

func init() { samplesWanted = 1 } // so that the tests with an API server meet packed objects

// quietVolume is what there is of the i-th volume of a cluster, as the API
// server sends it.
func quietVolume(i int) (*corev1.PersistentVolume, *corev1.PersistentVolumeClaim, *v1alpha1.Volume) {
	now := metav1.Now().Rfc3339Copy()
	uid := func() types.UID { return uuid.NewUUID() }
	claimUID, node := uid(), fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/20/200, i/20%200)
	pvName := "pvc-" + string(claimUID)
	size := resource.MustParse("10Gi")
	params, _ := parameters.Parse(map[string]string{"backend": "loop", "fsType": "ext4", "onDelete": "trash",
		"trashRetention": "72h"})
	mode := corev1.PersistentVolumeFilesystem
	fields := []metav1.ManagedFieldsEntry{{Manager: "quarry", Operation: metav1.ManagedFieldsOperationApply,
		APIVersion: "v1",
		FieldsV1:   metav1.NewFieldsV1(strings.Repeat("f", 1500))}}
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("team-", i%300), Name: fmt.Sprint("data-database-", i),
			UID:             claimUID,
			ResourceVersion: fmt.Sprint(1000000 + i), CreationTimestamp: now,
			ManagedFields: fields, Finalizers: []string{"kubernetes.io/pvc-protection"},
			Labels: map[string]string{"app": "database", "team": fmt.Sprint(i % 300)},
			Annotations: map[string]string{"pv.kubernetes.io/bind-completed": "yes",
				"pv.kubernetes.io/bound-by-controller": "yes", annSelectedNode: node,
				"volume.kubernetes.io/storage-provisioner":      v1alpha1.LocalProvisioner,
				"volume.beta.kubernetes.io/storage-provisioner": v1alpha1.LocalProvisioner}},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: new("quarry"), VolumeName: pvName, VolumeMode: &mode,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}}},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: size}},
	}
	spec := v1alpha1.VolumeSpec{NodeName: node, DesiredState: v1alpha1.DesiredPresent, Published: true,
		VolumeMode: mode, AccessModes: claim.Spec.AccessModes,
		Capacity: size, StorageClassName: "quarry", ReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
		Provisioner: v1alpha1.LocalProvisioner, MountOptions: []string{"noatime"},
		Claim: &v1alpha1.ClaimReference{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			Labels: claim.Labels}}
	params.Apply(&spec)
	v := newVolumeObject(pvName, pvName+"-1", &spec)
	v.UID, v.ResourceVersion, v.CreationTimestamp, v.ManagedFields, v.Generation = uid(), fmt.Sprint(2000000+i),
		now, fields, 2
	v.Status = v1alpha1.VolumeStatus{Phase: v1alpha1.VolumeReady, Pool: "default",
		PoolUID: "5d0a2f7e-8a0b-4a5f-9d4c-0a1b2c3d4e5f", Backend: v1alpha1.BackendLoop, FSType: "ext4",
		Path: "/volumes/" + pvName + "-1/mount/data", Capacity: &size, ObservedGeneration: 2,
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue,
			Reason: v1alpha1.ReasonReady, LastTransitionTime: now, ObservedGeneration: 1}}}
	host := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, UID: uid(),
		Labels: map[string]string{corev1.LabelHostname: node}}}
	pv, err := PersistentVolumeOf(pvName, v, host, map[string]string{v1alpha1.LabelPool: "default",
		v1alpha1.LabelNode: node})
	if err != nil {
		panic(err)
	}
	pv.UID, pv.ResourceVersion, pv.CreationTimestamp, pv.ManagedFields, pv.Finalizers = uid(), fmt.Sprint(3000000+i),
		now, fields, []string{"kubernetes.io/pv-protection", finalizerOfLibrary}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1",
		Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: "4000000"}
	pv.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound, LastPhaseTransitionTime: new(now)}
	return pv, claim, v
}

// packer returns a codec that has learnt from other objects than those it is
// given.
func packers(t *testing.T) map[string]*codec {
	volumes, claims, records := newPackers()
	pv, claim, v := quietVolume(1 << 20)
	for o, c := range map[client.Object]*codec{pv: volumes, claim: claims, v: records} {
		_, err := c.transform(o)
		require.NoError(t, err)
		require.NotNil(t, c.ready.Load())
	}
	return map[string]*codec{"*v1.PersistentVolume": volumes, "*v1.PersistentVolumeClaim": claims,
		"*v1alpha1.Volume": records}
}

func TestPackedObjectsAreWhole(t *testing.T) {
	codecs := packers(t)
	pv, claim, v := quietVolume(1)
	for _, o := range []client.Object{pv, claim, v} {
		want := o.DeepCopyObject().(client.Object)
		want.SetManagedFields(nil)
		c := codecs[fmt.Sprintf("%T", o)]
		got, err := c.transform(o)
		require.NoError(t, err)
		p, ok := got.(*packed)
		require.True(t, ok, "%T is quiet", o)
		again, err := c.transform(got)
		require.NoError(t, err)
		require.Same(t, p, again)
		require.True(t, equality.Semantic.DeepEqual(want, p.DeepCopyObject()), "%T", o)
		for name, get := range map[string]func(metav1.Object) any{
			"name": func(o metav1.Object) any {
				return o.GetName()
			}, "namespace": func(o metav1.Object) any { return o.GetNamespace() },
			"UID": func(o metav1.Object) any {
				return o.GetUID()
			}, "version": func(o metav1.Object) any { return o.GetResourceVersion() },
			"labels": func(o metav1.Object) any {
				return o.GetLabels()
			}, "annotations": func(o metav1.Object) any { return o.GetAnnotations() },
			"finalizers": func(o metav1.Object) any {
				return o.GetFinalizers()
			}, "generation": func(o metav1.Object) any { return o.GetGeneration() },
			"created": func(o metav1.Object) any {
				return o.GetCreationTimestamp().Unix()
			}, "deleted": func(o metav1.Object) any { return o.GetDeletionTimestamp() },
			"owners": func(o metav1.Object) any {
				return o.GetOwnerReferences()
			}, "fields": func(o metav1.Object) any { return o.GetManagedFields() },
		} {
			require.Equal(t, get(want), get(p), "%T: %s", o, name)
		}
		indexes := map[string]client.IndexerFunc{"pv": indexPV, "leadsTo": indexOfLeadsTo, "loss": indexOfNodeLoss}
		if _, is := want.(*v1alpha1.Volume); is {
			indexes = map[string]client.IndexerFunc{"pvName": indexOfPVName, "trouble": indexOfTrouble}
		}
		for name, index := range indexes {
			require.ElementsMatch(t, index(want), index(p), "%T: index %s", o, name)
		}
	}
}

// TestRestlessObjectsAreNotPacked: what somebody still has something to do with
// lies in the cache as it is.
func TestRestlessObjectsAreNotPacked(t *testing.T) {
	codecs := packers(t)
	for name, change := range map[string]func(*corev1.PersistentVolume, *corev1.PersistentVolumeClaim,
		*v1alpha1.Volume) client.Object{
		"a released PersistentVolume": func(pv *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim,
			_ *v1alpha1.Volume) client.Object {
			pv.Status.Phase = corev1.VolumeReleased
			return pv
		},
		"one that lacks the library's finalizer": func(pv *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim,
			_ *v1alpha1.Volume) client.Object {
			pv.Finalizers = nil
			return pv
		},
		"one that is kept now, and has it": func(pv *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim,
			_ *v1alpha1.Volume) client.Object {
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
			return pv
		},
		"one that leads to another volume": func(pv *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim,
			_ *v1alpha1.Volume) client.Object {
			pv.Spec.Local.Path = "/volumes/pvc-x-1/data"
			return pv
		},
		"a claim that grows": func(_ *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim,
			_ *v1alpha1.Volume) client.Object {
			c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("11Gi")
			return c
		},
		"a claim that is not bound": func(_ *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim,
			_ *v1alpha1.Volume) client.Object {
			c.Spec.VolumeName, c.Status.Phase = "", corev1.ClaimPending
			return c
		},
		"a volume that is to be deleted": func(_ *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim,
			v *v1alpha1.Volume) client.Object {
			v.Spec.DesiredState = v1alpha1.DesiredDeleted
			return v
		},
		"a volume that is lost": func(_ *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim,
			v *v1alpha1.Volume) client.Object {
			v.Status.Phase = v1alpha1.VolumeLost
			return v
		},
	} {
		o := change(quietVolume(1))
		got, err := codecs[fmt.Sprintf("%T", o)].transform(o)
		require.NoError(t, err)
		require.Same(t, o, got, name)
	}
}

// TestMemoryOfAVolume holds what the caches keep of one volume to what the
// sizing guide says.
func TestMemoryOfAVolume(t *testing.T) {
	const volumes, most = 5000, 2300 // bytes
	codecs := packers(t)
	field := func(f client.IndexerFunc) toolscache.IndexFunc {
		return func(obj any) ([]string, error) { return f(obj.(client.Object)), nil }
	}
	byUID := func(obj any) ([]string, error) { return []string{string(obj.(metav1.Object).GetUID())}, nil }
	namespace := func(obj any) ([]string, error) { return []string{obj.(metav1.Object).GetNamespace()}, nil }
	stores := map[string]toolscache.Indexer{
		"*v1.PersistentVolume": toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc, toolscache.Indexers{
			indexPVNode: field(indexPV), indexLeadsTo: field(indexOfLeadsTo), indexNodeLoss: field(indexOfNodeLoss)}),
		"*v1.PersistentVolumeClaim": toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc,
			toolscache.Indexers{"uid": byUID, "namespace": namespace}),
		"*v1alpha1.Volume": toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc, toolscache.Indexers{
			indexPVName: field(indexOfPVName), indexTrouble: field(indexOfTrouble)}),
	}
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	for i := range 2 * volumes {
		if i == volumes { // what the packers need once is not counted
			before = used()
		}
		pv, claim, v := quietVolume(i)
		for _, o := range []client.Object{pv, claim, v} {
			kind := fmt.Sprintf("%T", o)
			kept, err := codecs[kind].transform(o)
			require.NoError(t, err)
			require.NoError(t, stores[kind].Add(kept))
		}
	}
	each := (used() - before) / volumes
	runtime.KeepAlive(stores)
	for kind, store := range stores {
		size, packs := 0, 0
		for _, o := range store.List() {
			if p, ok := o.(*packed); ok {
				size, packs = size+cap(p.data), packs+1
			}
		}
		t.Logf("%s: %d of %d packed, %d bytes each", kind, packs, len(store.List()), size/max(packs, 1))
	}
	t.Logf("%d bytes for a volume", each)
	require.Less(t, each, uint64(most))
}

func BenchmarkPack(b *testing.B) {
	volumes, claims, records := newPackers()
	pv, claim, v := quietVolume(1)
	for name, of := range map[string]struct {
		c *codec
		o client.Object
	}{"PersistentVolume": {volumes, pv}, "claim": {claims, claim}, "Volume": {records, v}} {
		_, _ = of.c.transform(of.o)
		got, _ := of.c.transform(of.o)
		b.Run("pack "+name, func(b *testing.B) {
			for b.Loop() {
				_, _ = of.c.transform(of.o)
			}
		})
		b.Run("unpack "+name, func(b *testing.B) {
			b.ReportMetric(float64(len(got.(*packed).data)), "B/packed")
			for b.Loop() {
				got.(*packed).whole()
			}
		})
	}
}

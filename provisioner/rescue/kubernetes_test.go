package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
	"github.com/quarry-storage/quarry/provisioner/internal/controlplane"
)

const (
	namespace = "shop"
	system    = "quarry-system"
	patience  = time.Minute // for what has to come; nothing is measured by it
)

// site is a real API server, controller manager and Quarry controller, with two
// nodes whose agents a test plays.
type site struct {
	t *testing.T
	client.WithWatch
	r *Rescuer
}

// TestKubernetes brings volumes back in a real control plane, while Quarry's
// controller works on the same objects.
func TestKubernetes(t *testing.T) {
	cp := controlplane.Start(t, "../../charts/quarry/crds")
	cp.Kubectl(t, "apply", "-f", "../testdata/rbac.yaml")
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	scheme, err := provisioner.NewScheme()
	require.NoError(t, err)
	c, err := client.NewWithWatch(cp.Config(controlplane.Admin), client.Options{Scheme: scheme})
	require.NoError(t, err)
	s := &site{t: t, WithWatch: c}
	s.make(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	for _, node := range []string{"a", "b"} {
		s.node(node)
	}
	for name, parameters := range map[string]map[string]string{"purge": nil, "trash": {"onDelete": "trash",
		"trashRetention": "1h"}} {
		s.make(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name},
			Provisioner: v1alpha1.LocalProvisioner,
			Parameters:  parameters, VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
			AllowVolumeExpansion: new(true)})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- provisioner.Run(ctx, cp.Config(controlplane.Controller), provisioner.Options{Namespace: system,
			NoLeaderElection: true, Registry: prometheus.NewRegistry()})
	}()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	for _, test := range []struct {
		name string
		run  func(*site)
	}{
		{"a volume comes back from the trash, and is purged", testTrash},
		{"an orphan comes back, for its claim or for another", testOrphan},
		{"the cluster is rebuilt from disk", testRebuilt},
		{"a disk moves to another node, with a crash after every write", testMove},
		{"a pool's path changes, with a crash after every write", testPathChanged},
		{"data that was there becomes a volume", testAdopt},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&site{t: t, WithWatch: c, r: &Rescuer{Client: c, Patience: patience, Say: t.Logf}})
		})
	}
}

func (s *site) make(o client.Object) {
	s.t.Helper()
	require.NoError(s.t, s.Create(context.Background(), o))
}

// node makes a node with an agent that has every volume that it is asked for.
func (s *site) node(name string) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		Labels: map[string]string{corev1.LabelHostname: "host-" + name}}}
	s.make(node)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	require.NoError(s.t, s.Status().Update(context.Background(), node))
	agent := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "agent-" + name, Namespace: system,
			Labels: map[string]string{"app.kubernetes.io/name": "quarry", "app.kubernetes.io/component": "agent"}},
		Spec: corev1.PodSpec{NodeName: name, Containers: []corev1.Container{{Name: "agent", Image: "agent"}}},
	}
	s.make(agent)
	agent.Status.Phase, agent.Status.Conditions = corev1.PodRunning, []corev1.PodCondition{{Type: corev1.PodReady,
		Status: corev1.ConditionTrue}}
	require.NoError(s.t, s.Status().Update(context.Background(), agent))
	s.make(&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: name + ".default",
		Labels: map[string]string{v1alpha1.LabelPool: "default"}},
		Spec: v1alpha1.PoolSpec{NodeName: name, Pool: "default"}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait.UntilWithContext(ctx, func(ctx context.Context) { s.answer(ctx, name) }, time.Millisecond)
	}()
	s.t.Cleanup(func() { cancel(); <-done })
}

// answer says of every Volume of a node what an agent would that has its disk.
func (s *site) answer(ctx context.Context, node string) {
	w, err := s.Watch(ctx, &v1alpha1.VolumeList{}, client.MatchingFields{"spec.nodeName": node})
	if err != nil {
		return
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		v, ok := e.Object.(*v1alpha1.Volume)
		if !ok || e.Type == "DELETED" || v.Status.ObservedGeneration == v.Generation && v.Status.Phase != "" {
			continue
		}
		before := v.DeepCopy()
		v.Status.ObservedGeneration = v.Generation
		ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
			Reason: v1alpha1.ReasonRemoved, ObservedGeneration: v.Generation}
		v.Status.Pool, v.Status.PoolUID, v.Status.Backend, v.Status.Path = "default", "disk",
			v1alpha1.BackendDirectory, ""
		switch v.Spec.DesiredState {
		case v1alpha1.DesiredTrashed:
			v.Status.Phase = v1alpha1.VolumeTrashed
		case v1alpha1.DesiredDeleted:
			v.Status.Phase = v1alpha1.VolumeDeleted
		default:
			v.Status.Phase, v.Status.Path = v1alpha1.VolumeReady, "/volumes/"+v.Name+"/data"
			v.Status.Capacity = new(v.Spec.Capacity.DeepCopy())
			ready.Status, ready.Reason = metav1.ConditionTrue, v1alpha1.ReasonReady
			if a := v.Spec.Adopt; a != nil && a.Path == "/nothing" {
				v.Status.Phase, ready.Status, ready.Reason, ready.Message = v1alpha1.VolumeRefused,
					metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable, "there is nothing"
			}
		}
		meta.SetStatusCondition(&v.Status.Conditions, ready)
		if err := s.Status().Patch(ctx, v, client.MergeFrom(before)); err != nil && !apierrors.IsNotFound(err) &&
			ctx.Err() == nil {
			s.t.Errorf("agent of %s: %v", node, err)
		}
	}
}

// claim makes a claim for a node, and returns it, bound, with its
// PersistentVolume and its Volume.
func (s *site) claim(name, class, node string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume,
	*v1alpha1.Volume) {
	s.t.Helper()
	s.make(&corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": name},
			Annotations: map[string]string{"volume.kubernetes.io/selected-node": node}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi")}}},
	})
	return s.bound(name)
}

func (s *site) bound(name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, *v1alpha1.Volume) {
	s.t.Helper()
	claim, pv, v := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}, &v1alpha1.Volume{}
	s.until("claim "+name+" bound", func() error {
		if err := s.Get(s.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, claim); err != nil {
			return err
		}
		if claim.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("it is %s", claim.Status.Phase)
		}
		if err := s.Get(s.t.Context(), client.ObjectKey{Name: claim.Spec.VolumeName}, pv); err != nil {
			return err
		}
		id, _, _ := behind(pv)
		return s.Get(s.t.Context(), client.ObjectKey{Name: id}, v)
	})
	return claim, pv, v
}

// until waits until something holds.
func (s *site) until(what string, holds func() error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = holds(); err == nil {
			return
		}
	}
	s.t.Fatalf("%s: %v", what, err)
}

func (s *site) gone(objects ...client.Object) {
	s.t.Helper()
	for _, o := range objects {
		s.until(fmt.Sprintf("%T %s gone", o, o.GetName()), func() error {
			err := s.Get(s.t.Context(), client.ObjectKeyFromObject(o), o)
			if err == nil {
				return fmt.Errorf("still there: %+v", o)
			}
			return client.IgnoreNotFound(err)
		})
	}
}

// deleteClaim deletes a claim whose volume is Quarry's with policy Delete, and
// sees that all of it goes: that what rescue wrote is handled like what the
// controller wrote.
func (s *site) deleteClaim(name string) {
	s.t.Helper()
	claim, pv, v := s.bound(name)
	require.Equal(s.t, corev1.PersistentVolumeReclaimDelete, pv.Spec.PersistentVolumeReclaimPolicy)
	require.NoError(s.t, s.Delete(s.t.Context(), claim))
	s.gone(claim, pv, v)
}

func testTrash(s *site) {
	ctx := s.t.Context()
	claim, pv, v := s.claim("data", "trash", "a")
	require.NoError(s.t, s.Delete(ctx, claim))
	s.gone(claim, pv)
	trashed, err := s.r.Trashed(ctx)
	require.NoError(s.t, err)
	require.Len(s.t, trashed, 1)
	require.Equal(s.t, v.Name, trashed[0].Name)

	// A claim of that name that has another volume by now.
	s.claim("data", "purge", "a")
	taken := (*ClaimTakenError)(nil)
	require.ErrorAs(s.t, s.r.Restore(ctx, v.Name, RestoreOptions{}), &taken)
	s.deleteClaim("data")
	require.NoError(s.t, s.Get(ctx, client.ObjectKeyFromObject(v), v))
	require.Equal(s.t, v1alpha1.DesiredTrashed, v.Spec.DesiredState, "a refusal writes nothing")

	require.NoError(s.t, s.r.Restore(ctx, v.Name, RestoreOptions{}))
	again, pvAgain, _ := s.bound("data")
	require.Equal(s.t, pv.Name, pvAgain.Name)
	require.NotEqual(s.t, claim.UID, again.UID)
	require.Equal(s.t, map[string]string{"app": "data"}, again.Labels)
	require.Equal(s.t, "trash", *again.Spec.StorageClassName)
	for _, key := range []string{v1alpha1.AnnotationNode, v1alpha1.AnnotationNodeUID, v1alpha1.AnnotationPool,
		v1alpha1.AnnotationParameters, v1alpha1.AnnotationVolume, annProvisionedBy} {
		require.Equal(s.t, pv.Annotations[key], pvAgain.Annotations[key], key)
	}
	require.Equal(s.t, pv.Spec.NodeAffinity, pvAgain.Spec.NodeAffinity)
	require.NoError(s.t, s.r.Restore(ctx, v.Name, RestoreOptions{}), "a second run finds it done")

	require.ErrorContains(s.t, s.r.Delete(ctx, v.Name), "still names")
	require.NoError(s.t, s.Delete(ctx, again))
	s.gone(again, pvAgain)
	require.NoError(s.t, s.r.Delete(ctx, v.Name))
	s.gone(v)
}

// rescued does by hand what people do to keep a volume: policy Retain, then
// claim and PersistentVolume deleted.
func (s *site) rescued(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
	s.t.Helper()
	base := pv.DeepCopy()
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	require.NoError(s.t, s.Patch(s.t.Context(), pv, client.MergeFrom(base)))
	require.NoError(s.t, s.Delete(s.t.Context(), claim))
	s.gone(claim)
	require.NoError(s.t, s.Delete(s.t.Context(), pv))
	s.gone(pv)
}

func testOrphan(s *site) {
	ctx := s.t.Context()
	claim, pv, v := s.claim("data", "purge", "a")
	s.rescued(claim, pv)
	orphans, err := s.r.Orphans(ctx)
	require.NoError(s.t, err)
	require.Len(s.t, orphans, 1)
	require.Equal(s.t, v.Name, orphans[0].Name)

	require.NoError(s.t, s.r.Restore(ctx, v.Name, RestoreOptions{NoClaim: true}))
	require.NoError(s.t, s.Get(ctx, client.ObjectKeyFromObject(pv), pv))
	require.Empty(s.t, pv.Spec.ClaimRef.UID, "with a UID of a claim that is gone it would be Released")
	orphans, err = s.r.Orphans(ctx)
	require.NoError(s.t, err)
	require.Empty(s.t, orphans)
	s.make(Claim(v))
	claim, pv, v = s.bound("data")

	s.rescued(claim, pv)
	other := &v1alpha1.ClaimReference{Namespace: namespace, Name: "other"}
	require.NoError(s.t, s.r.Restore(ctx, v.Name, RestoreOptions{Claim: other}))
	claim, pv, v = s.bound("other")
	require.Equal(s.t, corev1.PersistentVolumeReclaimRetain, pv.Spec.PersistentVolumeReclaimPolicy,
		"as the person had set it")
	s.until("the record follows", func() error {
		if err := s.Get(ctx, client.ObjectKeyFromObject(v), v); err != nil || v.Spec.Claim.UID == claim.UID {
			return err
		}
		return errors.New("its claim is another")
	})
	s.rescued(claim, pv)
	require.NoError(s.t, s.r.Delete(ctx, v.Name))
	s.gone(v)
}

// found is the disk of a node with volumes on it.
func found(node string, volumes ...*v1alpha1.Volume) Disk {
	d := Disk{Node: node, Pool: "default", Path: "/volumes", UID: "disk-in-" + node}
	for _, v := range volumes {
		v := v.DeepCopy()
		v.Spec.NodeName = node
		d.Volumes = append(d.Volumes, Found{Volume: v})
	}
	return d
}

// recover makes a plan and does it.
func (s *site) recover(r *Rescuer, o Options, disks ...Disk) ([]Step, error) {
	snapshot, err := r.Take(s.t.Context(), disks, nil)
	if err != nil {
		return nil, err
	}
	steps := Plan(snapshot, o)
	return steps, r.Apply(s.t.Context(), steps)
}

func testRebuilt(s *site) {
	ctx := s.t.Context()
	claim, pv, v := s.claim("data", "purge", "a")
	kept := v.DeepCopy() // as the disk keeps it: with policy Delete
	s.rescued(claim, pv)
	require.NoError(s.t, s.Delete(ctx, v))
	s.gone(v)

	steps, err := s.recover(s.r, Options{}, found("a", kept))
	require.NoError(s.t, err)
	require.Len(s.t, steps, 2)
	require.NoError(s.t, s.Get(ctx, client.ObjectKeyFromObject(pv), pv))
	s.until("it waits for its claim", func() error {
		if err := s.Get(ctx, client.ObjectKeyFromObject(pv), pv); err != nil ||
			pv.Status.Phase == corev1.VolumeAvailable {
			return err
		}
		return errors.New(string(pv.Status.Phase))
	})
	steps, err = s.recover(s.r, Options{Claims: true}, found("a", kept))
	require.NoError(s.t, err)
	require.Len(s.t, steps, 1)
	steps, err = s.recover(s.r, Options{Claims: true}, found("a", kept))
	require.NoError(s.t, err)
	require.Empty(s.t, steps)
	s.deleteClaim("data")
}

// dying is a client whose process dies after a number of writes.
func (s *site) dying(after int32) client.WithWatch {
	var left atomic.Int32
	left.Store(after)
	write := func(f func() error) error {
		if left.Add(-1) < 0 {
			return io.ErrUnexpectedEOF
		}
		return f()
	}
	return interceptor.NewClient(s.WithWatch, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return write(func() error { return c.Create(ctx, o, opts...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return write(func() error { return c.Delete(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch,
			opts ...client.PatchOption) error {
			return write(func() error { return c.Patch(ctx, o, p, opts...) })
		},
	})
}

// hasten changes the claim when its PersistentVolume was written again. Else
// the binder would look at a claim that it found Lost only every 15 s.
func (s *site) hasten(format string, args ...any) {
	s.t.Logf(format, args...)
	if !strings.HasPrefix(format, "persistentvolume/%s created") {
		return
	}
	patch := client.RawPatch(types.MergePatchType, []byte(fmt.Sprintf(`{"metadata":{"annotations":{"test":"%d"}}}`,
		time.Now().UnixNano())))
	require.NoError(s.t, s.Patch(s.t.Context(),
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "data"}}, patch))
}

func testMove(s *site) {
	claim, pv, v := s.claim("data", "purge", "a")
	from, to := "a", "b"
	for writes := int32(0); ; writes++ {
		_, err := s.recover(&Rescuer{Client: s.dying(writes), Patience: patience, Say: s.hasten}, Options{},
			found(from), found(to, v))
		s.t.Logf("after %d writes: %v", writes, err)
		if _, again := s.recover(&Rescuer{Client: s, Patience: patience, Say: s.hasten}, Options{}, found(from),
			found(to, v)); again != nil {
			s.t.Fatalf("the run after one that ended after %d writes (%v): %v", writes, err, again)
		}
		now, newPV, record := s.bound("data")
		require.Equal(s.t, claim.UID, now.UID)
		require.Equal(s.t, pv.Name, newPV.Name)
		require.NotEqual(s.t, pv.UID, newPV.UID)
		require.Equal(s.t, corev1.PersistentVolumeReclaimDelete, newPV.Spec.PersistentVolumeReclaimPolicy)
		require.Empty(s.t, newPV.Annotations[v1alpha1.AnnotationReclaimPolicy])
		require.Equal(s.t, []string{"host-" + to}, affinityHosts(newPV))
		require.Equal(s.t, to, record.Spec.NodeName)
		require.Equal(s.t, v1alpha1.DesiredPresent, record.Spec.DesiredState)
		require.Equal(s.t, corev1.PersistentVolumeReclaimDelete, record.Spec.ReclaimPolicy)
		require.Equal(s.t, claim.UID, record.Spec.Claim.UID)
		pv, v, from, to = newPV, record, to, from
		if err == nil {
			break
		}
	}
	s.deleteClaim("data")
}

func testPathChanged(s *site) {
	claim, pv, v := s.claim("data", "purge", "a")
	for writes := int32(0); ; writes++ {
		base := v.DeepCopy()
		v.Status.Path = fmt.Sprintf("/mnt/%d/%s/data", writes, v.Name)
		require.NoError(s.t, s.Status().Patch(s.t.Context(), v, client.MergeFrom(base)))
		steps, err := s.recover(&Rescuer{Client: s.dying(writes), Patience: patience, Say: s.hasten}, Options{},
			found("a", v))
		s.t.Logf("after %d writes: %v", writes, err)
		if _, again := s.recover(&Rescuer{Client: s, Patience: patience, Say: s.hasten}, Options{}, found("a",
			v)); again != nil {
			s.t.Fatalf("the run after one that ended after %d writes (%v): %v", writes, err, again)
		}
		now, newPV, record := s.bound("data")
		require.Equal(s.t, claim.UID, now.UID)
		require.Equal(s.t, pv.Name, newPV.Name)
		require.Equal(s.t, v.Status.Path, newPV.Spec.Local.Path)
		require.Equal(s.t, corev1.PersistentVolumeReclaimDelete, newPV.Spec.PersistentVolumeReclaimPolicy)
		require.Empty(s.t, newPV.Annotations[v1alpha1.AnnotationReclaimPolicy])
		require.Equal(s.t, v.UID, record.UID, "the Volume is on its node, and stays")
		pv, v = newPV, record
		if err == nil {
			require.Equal(s.t, Move, steps[0].Verb)
			break
		}
	}
	s.deleteClaim("data")
}

func testAdopt(s *site) {
	ctx := s.t.Context()
	class := "by-hand"
	s.make(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class},
		Provisioner: "kubernetes.io/no-provisioner"})
	made := func(name, path string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("4Gi")},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname,
						Operator: corev1.NodeSelectorOpIn, Values: []string{"host-b"}}}}}}},
		}}
	}
	pv := made("easemesh-storage-pv-1", "/volumes/easemesh-storage")
	s.make(pv)
	s.make(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "etcd", Namespace: namespace},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: pv.Name,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("3Gi")}}}})
	s.until("bound by hand", func() error {
		if err := s.Get(ctx, client.ObjectKeyFromObject(pv), pv); err != nil || pv.Status.Phase == corev1.VolumeBound {
			return err
		}
		return errors.New(string(pv.Status.Phase))
	})

	v, err := s.r.Prepare(ctx, Adoption{PV: pv.Name})
	require.NoError(s.t, err)
	require.Equal(s.t, "b", v.Spec.NodeName)
	require.Equal(s.t, "/volumes/easemesh-storage", v.Spec.Adopt.Path)
	require.Equal(s.t, "4Gi", v.Spec.Capacity.String())
	require.Equal(s.t, "etcd", v.Spec.Claim.Name)
	require.True(s.t, v.Spec.Published)
	require.NoError(s.t, s.r.Adopt(ctx, v))
	require.NoError(s.t, s.r.Adopt(ctx, v), "a second run finds it done")
	s.deleteClaim("etcd")

	// A new PersistentVolume, for a claim that comes later. Where there may be
	// nothing, the volume is published once it is made.
	a := Adoption{Node: "a", Path: "/volumes/old data", Type: v1alpha1.AdoptDirectoryOrCreate,
		Size: resource.MustParse("2Gi"), Class: class,
		Claim: &v1alpha1.ClaimReference{Namespace: namespace, Name: "later"}}
	v, err = s.r.Prepare(ctx, a)
	require.NoError(s.t, err)
	require.Equal(s.t, "a-old-data-1", v.Name)
	require.NoError(s.t, s.r.Adopt(ctx, v))
	s.make(Claim(v))
	claim, pv, v := s.bound("later")
	require.True(s.t, v.Spec.Published)
	require.Equal(s.t, corev1.PersistentVolumeReclaimRetain, pv.Spec.PersistentVolumeReclaimPolicy)
	s.rescued(claim, pv)
	require.NoError(s.t, s.r.Delete(ctx, v.Name))

	a.Path, a.Claim = "/nothing", nil
	v, err = s.r.Prepare(ctx, a)
	require.NoError(s.t, err)
	require.ErrorContains(s.t, s.r.Adopt(ctx, v), "there is nothing")
	s.gone(v)

	over := made("over", "/volumes/over")
	over.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: namespace, Name: "never",
		UID: "gone"}
	s.make(over)
	s.until("released", func() error {
		if err := s.Get(ctx, client.ObjectKeyFromObject(over), over); err != nil ||
			over.Status.Phase != corev1.VolumePending && over.Status.Phase != "" {
			return err
		}
		return errors.New("not yet")
	})
	_, err = s.r.Prepare(ctx, Adoption{PV: "over"})
	require.ErrorContains(s.t, err, "would be deleted")
}

package rescue

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

const thisCluster = "this-cluster"

// world is a snapshot that tests build up: two ready nodes, a class and a
// namespace.
func world(change ...func(*Snapshot)) *Snapshot {
	s := &Snapshot{
		ClusterID: thisCluster, Nodes: map[string]*corev1.Node{}, Unread: map[string]string{},
		Pools: map[string]*v1alpha1.Pool{}, Volumes: map[string]*v1alpha1.Volume{},
		PVs:     map[string]*corev1.PersistentVolume{},
		Claims:  map[client.ObjectKey]*corev1.PersistentVolumeClaim{},
		Classes: map[string]bool{"fast": true}, Namespaces: map[string]bool{"shop": true},
		Pods: map[client.ObjectKey][]Pod{},
	}
	for _, name := range []string{"a", "b"} {
		s.Nodes[name] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name),
			Labels: map[string]string{corev1.LabelHostname: "host-" + name}},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady,
				Status: corev1.ConditionTrue}}}}
	}
	for _, f := range change {
		f(s)
	}
	return s
}

// onDisk is what a disk says of attempt n for PersistentVolume pv, made for
// claim shop/<claim>.
func onDisk(node, pv string, n int, claim string) *v1alpha1.Volume {
	id := fmt.Sprintf("%s-%d", pv, n)
	size := resource.MustParse("1Gi")
	return &v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{Name: id, Labels: map[string]string{v1alpha1.LabelPVName: pv}},
		Spec: v1alpha1.VolumeSpec{NodeName: node, DesiredState: v1alpha1.DesiredPresent, Published: true,
			Backend:     v1alpha1.BackendDirectory,
			Enforcement: v1alpha1.EnforcementQuota, Allocation: v1alpha1.AllocationThick,
			VolumeMode:  corev1.PersistentVolumeFilesystem,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: size,
			Claim:            &v1alpha1.ClaimReference{Namespace: "shop", Name: claim, UID: "old-uid"},
			StorageClassName: "fast", ReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			Provisioner: v1alpha1.LocalProvisioner},
		Status: v1alpha1.VolumeStatus{Phase: v1alpha1.VolumeReady, Pool: "default", Backend: v1alpha1.BackendDirectory,
			Path: "/volumes/" + id + "/data", Capacity: &size},
	}
}

func disk(node string, volumes ...*v1alpha1.Volume) func(*Snapshot) {
	return func(s *Snapshot) {
		d := Disk{Node: node, Pool: "default", Path: "/volumes", UID: "disk-of-" + node, ClusterID: thisCluster}
		for _, v := range volumes {
			d.Volumes = append(d.Volumes, Found{Volume: v})
		}
		s.Disks = append(s.Disks, d)
	}
}

// record puts a volume's object into the cluster, and pv its PersistentVolume,
// bound to its claim.
func record(v *v1alpha1.Volume, change ...func(*v1alpha1.Volume)) func(*Snapshot) {
	return func(s *Snapshot) {
		v := v.DeepCopy()
		for _, f := range change {
			f(v)
		}
		s.Volumes[v.Name] = v
	}
}

func bound(t *testing.T, v *v1alpha1.Volume, change ...func(*corev1.PersistentVolume)) func(*Snapshot) {
	return func(s *Snapshot) {
		pv, err := PersistentVolume(v, s.Nodes[v.Spec.NodeName], nil, nil)
		require.NoError(t, err)
		ref := v.Spec.Claim
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}
		pv.Status.Phase = corev1.VolumeBound
		for _, f := range change {
			f(pv)
		}
		s.PVs[pv.Name] = pv
	}
}

func claimIn(name, volumeName string) func(*Snapshot) {
	return func(s *Snapshot) {
		s.Claims[client.ObjectKey{Namespace: "shop", Name: name}] = &corev1.PersistentVolumeClaim{
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volumeName}}
	}
}

func TestPlan(t *testing.T) {
	v, second := onDisk("a", "pvc-1", 1, "data"), onDisk("a", "pvc-1", 2, "data")
	moved := onDisk("b", "pvc-1", 1, "data")
	trash := func(left time.Duration) func(*Snapshot) {
		return func(s *Snapshot) {
			v := v.DeepCopy()
			v.Spec.DesiredState = v1alpha1.DesiredTrashed
			s.Disks[0].Volumes = append(s.Disks[0].Volumes, Found{Volume: v, InTrash: true, Remaining: left})
		}
	}
	elsewhere := v.DeepCopy()
	elsewhere.Status.Path = "/mnt/new/pvc-1-1/data"
	adopted := v.DeepCopy()
	adopted.Spec.Adopt = &v1alpha1.Adoption{Path: "/volumes/old"}
	byHand := func(path string) func(*Snapshot) {
		return func(s *Snapshot) {
			s.PVs["pvc-1"] = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"},
				Spec: corev1.PersistentVolumeSpec{
					PersistentVolumeSource: corev1.PersistentVolumeSource{
						Local: &corev1.LocalVolumeSource{Path: path}}}}
		}
	}
	ofCluster := func(id string) func(*Snapshot) { return func(s *Snapshot) { s.Disks[0].ClusterID = id } }
	pool := func(uid string) func(*Snapshot) {
		return func(s *Snapshot) { s.Pools["a.default"] = &v1alpha1.Pool{Spec: v1alpha1.PoolSpec{UID: uid}} }
	}
	notReady := func(node string) func(*Snapshot) {
		return func(s *Snapshot) { s.Nodes[node].Status.Conditions[0].Status = corev1.ConditionUnknown }
	}
	unread := func(node string) func(*Snapshot) { return func(s *Snapshot) { s.Unread[node] = "connection refused" } }
	noNode := func(node string) func(*Snapshot) { return func(s *Snapshot) { delete(s.Nodes, node) } }
	held := func(s *Snapshot) {
		s.Pods[client.ObjectKey{Namespace: "shop", Name: "data"}] = []Pod{{Name: "db-0", Node: "a"}}
	}
	replacing := func(pv *corev1.PersistentVolume) {
		pv.Annotations[v1alpha1.AnnotationReclaimPolicy] = "Delete"
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	for _, test := range []struct {
		name string
		s    *Snapshot
		o    Options
		want []string // "verb object"
		why  string   // in the first line
	}{
		{"nothing is amiss", world(disk("a", v), record(v), bound(t, v), claimIn("data", "pvc-1")),
			Options{Claims: true}, nil, ""},
		{"the cluster was rebuilt", world(disk("a", v)), Options{}, []string{"write volume volume/pvc-1-1",
			"write pv persistentvolume/pvc-1"}, "no Volume speaks of it"},
		{"its claims are wanted too", world(disk("a", v)), Options{Claims: true},
			[]string{"write volume volume/pvc-1-1", "write pv persistentvolume/pvc-1",
				"write claim persistentvolumeclaim/data"}, ""},
		{"neither class nor namespace exist", world(disk("a", v), func(s *Snapshot) {
			clear(s.Classes)
			clear(s.Namespaces)
		}), Options{Claims: true},
			[]string{"first namespace/shop", "first storageclass/fast", "write volume volume/pvc-1-1",
				"write pv persistentvolume/pvc-1"}, "the namespace does not exist"},
		{"a second run finds the PersistentVolume waiting", world(disk("a", v), record(v),
			bound(t, v, func(pv *corev1.PersistentVolume) {
				pv.Status.Phase = corev1.VolumeAvailable
			})),
			Options{Claims: true}, []string{"write claim persistentvolumeclaim/data"}, ""},
		{"a claim waits", world(disk("a", v), record(v), claimIn("data", "")), Options{Claims: true},
			[]string{"write pv persistentvolume/pvc-1"}, "waits for it"},
		{"a claim was lost", world(disk("a", v), record(v), claimIn("data", "pvc-1")), Options{},
			[]string{"write pv persistentvolume/pvc-1"}, "gets it back"},
		{"the claim has another volume by now", world(disk("a", v), record(v), claimIn("data", "pvc-2")),
			Options{Claims: true},
			[]string{"conflict persistentvolume/pvc-1"}, "bound to PersistentVolume pvc-2"},
		{"only the record is gone", world(disk("a", v), bound(t, v), claimIn("data", "pvc-1")), Options{},
			[]string{"write volume volume/pvc-1-1"}, ""},
		{"it is being deleted", world(disk("a", v), record(v, func(v *v1alpha1.Volume) {
			v.Spec.DesiredState = v1alpha1.DesiredDeleted
		})), Options{}, nil, ""},
		{"it is being made", world(disk("a", v), record(v, func(v *v1alpha1.Volume) {
			v.Spec.Published, v.Status.Phase = false, ""
		})), Options{}, nil, ""},
		{"another namespace is asked for", world(disk("a", v)), Options{Namespaces: []string{"other"}}, nil, ""},
		{"it was made without a cluster", world(disk("a", func() *v1alpha1.Volume {
			v := v.DeepCopy()
			v.Labels = nil
			return v
		}())), Options{}, []string{"conflict volume/pvc-1-1"}, "without a cluster"},

		{"it is in the trash", world(disk("a"), trash(time.Hour)), Options{}, []string{"write volume volume/pvc-1-1"},
			"in the trash"},
		{"the trash has its record", world(disk("a"), trash(time.Hour), record(v)), Options{}, nil, ""},
		{"its space is being freed", world(disk("a"), trash(0)), Options{}, nil, ""},
		{"it was deleted once and is there again", world(disk("a", v), trash(time.Hour), record(v), bound(t, v)),
			Options{}, nil, ""},
		{"a PersistentVolume names what is in the trash", world(disk("a"), trash(time.Hour), bound(t, v)), Options{},
			[]string{"refused volume/pvc-1-1"}, "still names it"},

		{"two attempts are on disk", world(disk("a", v, second)), Options{}, []string{"conflict volume/pvc-1-1",
			"conflict volume/pvc-1-2"}, "--only pvc-1-1"},
		{"a person chose one of two attempts", world(disk("a", v, second)), Options{Only: []string{"pvc-1-2"}},
			[]string{"write volume volume/pvc-1-2", "write pv persistentvolume/pvc-1"}, ""},
		{"a person chose both of two attempts", world(disk("a", v, second)), Options{Only: []string{"pvc-1-1",
			"pvc-1-2"}}, []string{"conflict volume/pvc-1-1", "conflict volume/pvc-1-2"}, ""},
		{"the PersistentVolume knows which attempt it is", world(disk("a", v, second), record(v), bound(t, v)),
			Options{}, []string{"conflict volume/pvc-1-2"}, "uses volume pvc-1-1"},
		{"a person wants to delete the attempt that is not used", world(disk("a", v, second), record(v), bound(t, v)),
			Options{Only: []string{"pvc-1-2"}},
			[]string{"write volume volume/pvc-1-2"}, "becomes an orphan"},
		{"the other attempt is being deleted", world(disk("a", v, second), record(second, func(v *v1alpha1.Volume) {
			v.Spec.DesiredState = v1alpha1.DesiredDeleted
		})),
			Options{}, []string{"write volume volume/pvc-1-1", "write pv persistentvolume/pvc-1"}, ""},
		{"the same volume is on two disks", world(disk("a", v), disk("b", moved)), Options{},
			[]string{"conflict volume/pvc-1-1", "conflict volume/pvc-1-1"}, "on several disks"},
		{"a disk was copied", world(disk("a", v), disk("b", moved), func(s *Snapshot) {
			s.Disks[1].UID = s.Disks[0].UID
		}), Options{},
			[]string{"refused pool/a.default", "refused pool/b.default"}, "on the nodes a and b"},

		{"a disk of another cluster", world(disk("a", v), ofCluster("other")), Options{},
			[]string{"foreign pool/a.default"}, "--take-over other"},
		{"a disk of a third cluster", world(disk("a", v), ofCluster("third"), pool("")), Options{TakeOver: "other"},
			[]string{"foreign pool/a.default"}, ""},
		{"a disk of another cluster is taken over", world(disk("a", v), ofCluster("other"), pool("")),
			Options{TakeOver: "other"},
			[]string{"take over pool/a.default", "write volume volume/pvc-1-1", "write pv persistentvolume/pvc-1"}, ""},
		{"the agent did not write the Pool yet", world(disk("a", v), ofCluster("other")), Options{TakeOver: "other"},
			[]string{"refused pool/a.default"}, "run this again"},
		{"a disk of no cluster", world(disk("a", v), ofCluster("")), Options{}, []string{"write volume volume/pvc-1-1",
			"write pv persistentvolume/pvc-1"}, ""},
		{"the Pool remembers another disk", world(disk("a", v), pool("another")), Options{},
			[]string{"refused pool/a.default"}, "remembers another"},

		{"its disk moved", world(disk("a"), disk("b", moved), record(v), bound(t, v), claimIn("data", "pvc-1")),
			Options{}, []string{"move volume/pvc-1-1"}, "from node a to b"},
		{"its disk moved, and its old place is empty", world(disk("a"), disk("b", moved), record(v), bound(t, v),
			func(s *Snapshot) {
				s.Disks[0] = Disk{Node: "a", Pool: "default", Missing: true, Error: "no such directory"}
			}), Options{}, []string{"missing pool/a.default", "move volume/pvc-1-1"}, "no such directory"},
		{"its disk moved, and the old node is gone", world(disk("b", moved), record(v), bound(t, v), noNode("a")),
			Options{}, []string{"move volume/pvc-1-1"}, "from node a to b"},
		{"its disk moved, and its pods are still there", world(disk("a"), disk("b", moved), record(v), bound(t, v),
			held), Options{}, []string{"refused volume/pvc-1-1"}, "shop/db-0 on a"},
		{"its disk moved, and the old node cannot be read", world(disk("b", moved), record(v), bound(t, v),
			unread("a")), Options{},
			[]string{"unread node/a", "refused volume/pvc-1-1"}, "connection refused"},
		{"its disk moved, and the old node is down", world(disk("b", moved), record(v), bound(t, v), unread("a"),
			notReady("a")), Options{},
			[]string{"unread node/a", "move volume/pvc-1-1"}, ""},
		{"its disk moved to a node that does not exist", world(disk("a"), disk("b", moved), record(v), bound(t, v),
			noNode("b")), Options{}, []string{"refused volume/pvc-1-1"}, "no Node"},
		{"its disk moved, and the new Volume is written already", world(disk("a"), disk("b", moved), record(moved),
			bound(t, v, replacing)), Options{}, []string{"move volume/pvc-1-1"}, ""},
		{"its disk moved, and the old Volume is gone already", world(disk("a"), disk("b", moved),
			bound(t, v, replacing)), Options{}, []string{"move volume/pvc-1-1"}, ""},
		{"its disk moved, and its PersistentVolume is gone already", world(disk("a"), disk("b", moved), record(moved),
			claimIn("data", "pvc-1")), Options{}, []string{"write pv persistentvolume/pvc-1"}, ""},
		{"its disk moved back while it was replaced", world(disk("a", v), record(v), bound(t, v, replacing)), Options{},
			[]string{"move volume/pvc-1-1"}, "begun, and not finished"},
		{"its node has another hostname label", world(disk("a", v), record(v), bound(t, v), func(s *Snapshot) {
			s.Nodes["a"].Labels[corev1.LabelHostname] = "new"
		}), Options{},
			[]string{"move volume/pvc-1-1"}, "another label"},

		{"its pool's path was changed", world(disk("a", elsewhere), record(elsewhere), bound(t, v)), Options{},
			[]string{"move volume/pvc-1-1"}, "it is at /mnt/new/pvc-1-1/data, and its PersistentVolume says /volumes"},
		{"its pool's path was changed, and its pods are still there", world(disk("a", elsewhere), record(elsewhere),
			bound(t, v), held), Options{}, []string{"refused volume/pvc-1-1"}, "path was changed"},

		{"it is on no disk", world(disk("a"), record(v), bound(t, v)), Options{},
			[]string{"lost persistentvolume/pvc-1"}, "restore a backup"},
		{"its node is gone", world(disk("b"), bound(t, v), noNode("a")), Options{},
			[]string{"lost persistentvolume/pvc-1"}, "which does not exist"},
		{"its node could not be read", world(disk("b"), bound(t, v), unread("a")), Options{},
			[]string{"unread node/a", "lost persistentvolume/pvc-1"}, ""},
		{"a disk could not be read", world(disk("a"), bound(t, v), func(s *Snapshot) {
			s.Disks[0].Error = "input/output error"
		}), Options{},
			[]string{"unread pool/a.default", "lost persistentvolume/pvc-1"}, "input/output error"},

		{"an adopted volume's PersistentVolume was written by hand again", world(disk("a", adopted), record(adopted),
			byHand("/volumes/old")), Options{}, []string{"hand over persistentvolume/pvc-1"}, ""},
		{"a strange PersistentVolume has its name", world(disk("a", adopted), record(adopted), byHand("/elsewhere")),
			Options{}, []string{"conflict persistentvolume/pvc-1"}, "not one of Quarry's"},
	} {
		t.Run(test.name, func(t *testing.T) {
			steps := Plan(test.s, test.o)
			var have []string
			for _, s := range steps {
				have = append(have, string(s.Verb)+" "+s.Object)
			}
			require.Equal(t, test.want, have)
			if test.why != "" {
				require.Contains(t, steps[0].Why, test.why)
			}
		})
	}
}

// TestPlanCSI has the topology of the CSI door, and no hostname.
func TestPlanCSI(t *testing.T) {
	v := onDisk("a", "pvc-1", 1, "data")
	v.Spec.Provisioner = v1alpha1.CSIDriver
	moved := v.DeepCopy()
	moved.Spec.NodeName = "b"
	require.Empty(t, Plan(world(disk("a", v), record(v), bound(t, v)), Options{}))
	steps := Plan(world(disk("a"), disk("b", moved), record(v), bound(t, v)), Options{})
	require.Len(t, steps, 1)
	require.Equal(t, Move, steps[0].Verb)
}

// TestPlanNamesEveryVerbInOrder keeps the order and the verbs together.
func TestPlanNamesEveryVerbInOrder(t *testing.T) {
	require.Len(t, order, len(slices.Compact(slices.Sorted(slices.Values(order)))))
	s := world(disk("a", onDisk("a", "pvc-2", 1, "y"), onDisk("a", "pvc-1", 1, "x")))
	var have []string
	for _, step := range Plan(s, Options{}) {
		have = append(have, step.Object)
	}
	require.Equal(t, "volume/pvc-1-1 volume/pvc-2-1 persistentvolume/pvc-1 persistentvolume/pvc-2",
		strings.Join(have, " "))
}

package provisioner

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// A record can be written again from nothing but its PersistentVolume, and the
// agent finds the same volume under it.
func TestRecordFromPV(t *testing.T) {
	for _, class := range []storagev1.StorageClass{
		{},
		{Parameters: map[string]string{"backend": "loop", "fsType": "xfs", "mkfsOptions": "-m reflink=1", "owner": "7",
			"pool": "fast"}, MountOptions: []string{"noatime"}},
		{Parameters: map[string]string{"onDelete": "trash", "poolSelector": "a=b"},
			ReclaimPolicy: new(corev1.PersistentVolumeReclaimRetain)},
	} {
		class.Name, class.Provisioner = "quarry", v1alpha1.LocalProvisioner
		for _, mode := range []corev1.PersistentVolumeMode{corev1.PersistentVolumeFilesystem,
			corev1.PersistentVolumeBlock} {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data",
				UID: "1"}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &mode,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					"storage": resource.MustParse("1500M")}}}}
			params, err := parameters.Parse(class.Parameters)
			require.NoError(t, err)
			wish := wishOf(claim, &class, params)
			wish.NodeName = "node"
			v := newVolumeObject("pvc-1", "pvc-1-1", &wish)
			v.Status = v1alpha1.VolumeStatus{Path: "/volumes/pvc-1-1/mount/data", Pool: "fast"}
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "9",
				Labels: map[string]string{corev1.LabelHostname: "other"}}}
			pv, err := localPV("pvc-1", v, node, map[string]string{"disk": "ssd"})
			require.NoError(t, err)

			// What the library and the API server add.
			pv.Annotations[annProvisionedBy] = v1alpha1.LocalProvisioner
			pv.Spec.StorageClassName = class.Name
			pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: "data", UID: "1"}
			back, err := volumeFromPV(pv)
			require.NoError(t, err)
			require.True(t, sameWish(&back.Spec, &v.Spec), "%+v\n%+v", back.Spec, v.Spec)
			require.Equal(t, v.Name, back.Name)
			require.Equal(t, v.Labels, back.Labels)
			require.Equal(t, v.Spec.Deletion, back.Spec.Deletion)
			require.Equal(t, v.Spec.ReclaimPolicy, back.Spec.ReclaimPolicy)
			require.True(t, back.Spec.Published)
			o, ok := originOf(pv)
			require.True(t, ok)
			require.Empty(t, matches(v, pv, o))
			require.Equal(t, map[string]string{"disk": "ssd"}, pv.Labels)

			// The same from the other door, and from a record that does not
			// remember its class.
			v.Spec.Provisioner, v.Spec.Parameters = v1alpha1.CSIDriver, nil
			pv, err = PersistentVolumeOf("pvc-1", v, node, nil)
			require.NoError(t, err)
			back, err = volumeFromPV(pv)
			require.NoError(t, err)
			require.True(t, sameWish(&back.Spec, &v.Spec), "%+v\n%+v", back.Spec, v.Spec)
			require.Equal(t, v.Spec.Deletion, back.Spec.Deletion)
			require.Equal(t, v1alpha1.TopologyNode,
				pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Key)
		}
	}
}

// The record of a volume that was adopted together with its hand-made
// PersistentVolume is one of an adopted volume again.
func TestRecordOfAdopted(t *testing.T) {
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "by-hand", Annotations: map[string]string{
			annProvisionedBy:          v1alpha1.LocalProvisioner,
			v1alpha1.AnnotationVolume: "by-hand-1", v1alpha1.AnnotationNode: "node"}},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			Local: &corev1.LocalVolumeSource{Path: "/volumes/old"}}},
	}
	v, err := volumeFromPV(pv)
	require.NoError(t, err)
	require.Equal(t, &v1alpha1.Adoption{Path: "/volumes/old", Type: v1alpha1.AdoptDirectory}, v.Spec.Adopt)
	v.Status.Path = "/volumes/by-hand-1/data"
	o, ok := originOf(pv)
	require.True(t, ok)
	require.Empty(t, matches(v, pv, o))
	require.Empty(t, StalePath(v, pv), "the link leads to it")
	pv.Spec.Local.Path = "/volumes/by-hand-1/data"
	v, err = volumeFromPV(pv)
	require.NoError(t, err)
	require.Nil(t, v.Spec.Adopt)
}

func TestLocalPVRefuses(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node",
		Labels: map[string]string{corev1.LabelHostname: "h"}}}
	for _, path := range []string{"", "relative", "/a/../b", "/a/"} {
		v := &v1alpha1.Volume{Status: v1alpha1.VolumeStatus{Path: path}}
		_, err := localPV("pv", v, node, nil)
		require.ErrorContains(t, err, "reports the path", path)
	}
	_, err := localPV("pv", &v1alpha1.Volume{Status: v1alpha1.VolumeStatus{Path: "/a"}}, &corev1.Node{}, nil)
	require.ErrorContains(t, err, corev1.LabelHostname)
}

func TestOriginOf(t *testing.T) {
	csi := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: v1alpha1.CSIDriver, VolumeHandle: "pvc-1-1",
			VolumeAttributes: map[string]string{v1alpha1.AnnotationNode: "where it was made"}}}}}
	_, ok := originOf(csi)
	require.False(t, ok, "attributes cannot be changed, so they are no truth")
	on := func(nodes ...string) *corev1.VolumeNodeAffinity {
		return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: v1alpha1.TopologyNode, Operator: corev1.NodeSelectorOpIn, Values: nodes}}}}}}
	}
	csi.Spec.NodeAffinity = on("n", "m")
	_, ok = originOf(csi)
	require.False(t, ok)
	csi.Spec.NodeAffinity = on("n")
	o, is := originOf(csi)
	require.True(t, is)
	require.Equal(t, origin{Provisioner: v1alpha1.CSIDriver, Volume: "pvc-1-1", Node: "n"}, o)
	csi.Spec.CSI.VolumeHandle = "../../etc"
	_, ok = originOf(csi)
	require.False(t, ok)
	byHand := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/volumes/x"}}}}
	_, ok = originOf(byHand)
	require.False(t, ok)
}

// What anybody made by hand to have the data back leads to the volume, whatever
// it is called and however little it says.
func TestLeadsTo(t *testing.T) {
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1-1"},
		Spec: v1alpha1.VolumeSpec{Adopt: &v1alpha1.Adoption{Path: "/volumes/old"}}}
	pv := func(source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "by-hand"},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source}}
	}
	local := func(path string) *corev1.PersistentVolume {
		return pv(corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}})
	}
	csi := func(driver, handle string) *corev1.PersistentVolume {
		return pv(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver,
			VolumeHandle: handle}})
	}
	for _, leads := range []*corev1.PersistentVolume{local("/volumes/pvc-1-1/mount/data"),
		local("/run/quarry/dev/pvc-1-1"), local("/volumes/old"), csi(v1alpha1.CSIDriver, "pvc-1-1")} {
		require.True(t, LeadsTo(leads, v), "%v", leads.Spec)
	}
	for _, not := range []*corev1.PersistentVolume{local("/volumes/pvc-1-10/data"), local("/volumes/older"),
		csi(v1alpha1.CSIDriver, "pvc-1-2"), csi("another", "pvc-1-1"), pv(corev1.PersistentVolumeSource{})} {
		require.False(t, LeadsTo(not, v), "%v", not.Spec)
	}
}

// A pool's path that changed leaves the volume the PersistentVolume's own: it
// can be deleted, and somebody is told.
func TestStalePath(t *testing.T) {
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-x-1",
		Labels: map[string]string{v1alpha1.LabelPVName: "pvc-x"}},
		Spec: v1alpha1.VolumeSpec{NodeName: "n"}, Status: v1alpha1.VolumeStatus{Path: "/mnt/new/pvc-x-1/data"}}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-x"}}
	pv.Spec.Local = &corev1.LocalVolumeSource{Path: "/volumes/pvc-x-1/data"}
	require.Empty(t, matches(v, pv, origin{Volume: "pvc-x-1", Node: "n"}))
	require.Contains(t, StalePath(v, pv), "kubectl quarry recover")
	v.Status.Path = ""
	require.Empty(t, StalePath(v, pv), "nothing is known of where it is")
}

package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// handMade makes a StorageClass without a provisioner and a local
// PersistentVolume of it, as EaseMesh's manual has it.
func handMade(t testing.TB, name, node, path string) *corev1.PersistentVolume {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), "apply", "-f", writeFile(t, fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: hand-made}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %s}
spec:
  capacity: {storage: 64Mi}
  volumeMode: Filesystem
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: hand-made
  local: {path: %s}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]
`, name, path, node)))
	require.NoError(t, err, string(out))
	pv, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return pv
}

// TestAdoptHandMadeVolumes takes over what people made by hand for EaseMesh:
// bound and in use, and not bound yet.
func TestAdoptHandMadeVolumes(t *testing.T) {
	ns := newNamespace(t)
	onHost(t, "node2", "mkdir -p /volumes/easemesh-storage /volumes/easemesh-free && echo by-hand > "+
		"/volumes/easemesh-storage/file && echo free > /volumes/easemesh-free/file")
	used := handMade(t, "easemesh-storage-pv-2", "node2", "/volumes/easemesh-storage")
	claim(t, ns, "data", "hand-made", "64Mi")
	pod(t, ns, "app", "data", writer)
	require.Equal(t, used.Name, bound(t, ns, "data").Name)
	const id = "easemesh-storage-pv-2-1"

	out := mustPlugin(t, "adopt", "--pv", used.Name, "--enforcement", "none", "--dry-run")
	require.Contains(t, out, "/volumes/easemesh-storage")
	require.Equal(t, "directory", onHost(t, "node2", "stat -c %F /volumes/easemesh-storage"),
		"a dry run changes nothing")

	// The pool's filesystem can't limit a directory that is there already, and
	// that is said before anything is touched.
	_, err := plugin(t, "adopt", "--pv", used.Name, "--yes")
	require.Error(t, err)
	require.Equal(t, "directory", onHost(t, "node2", "stat -c %F /volumes/easemesh-storage"))

	mustPlugin(t, "adopt", "--pv", used.Name, "--enforcement", "none", "--yes")
	phaseOf(t, id, "Ready")
	require.Equal(t, "symbolic link", onHost(t, "node2", "stat -c %F /volumes/easemesh-storage"))
	require.Equal(t, "by-hand", onHost(t, "node2", "cat /volumes/"+id+"/data/file"))
	// The pod that had it all the time goes on writing to the same directory.
	before := inPod(t, ns, "app", "wc -l < /data/log")
	eventually(t, "the pod goes on writing", func() (bool, string) {
		now := onHost(t, "node2", "wc -l < /volumes/"+id+"/data/log")
		return now > before || len(now) > len(before), now
	})
	deletePod(t, ns, "app")
	pod(t, ns, "app", "data", idle)
	require.Equal(t, "by-hand", inPod(t, ns, "app", "cat /data/file"), "kubelet follows the link")

	// From now on Quarry reclaims it.
	adopted, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), used.Name, metav1.GetOptions{})
	require.NoError(t, err)
	deletePod(t, ns, "app")
	deleteClaim(t, ns, "data")
	gone(t, adopted)
	require.Empty(t, onHost(t, "node2", "ls -d /volumes/easemesh-storage 2>/dev/null; true"), "the link went with it")

	// One that nobody uses yet.
	free := handMade(t, "easemesh-storage-pv-3", "node2", "/volumes/easemesh-free")
	mustPlugin(t, "adopt", "--pv", free.Name, "--enforcement", "none", "--yes")
	claim(t, ns, "free", "hand-made", "64Mi")
	pod(t, ns, "free", "free", idle)
	require.Equal(t, "free", inPod(t, ns, "free", "cat /data/file"))
	free = bound(t, ns, "free")
	deletePod(t, ns, "free")
	deleteClaim(t, ns, "free")
	gone(t, free)
	_, err = cluster.Kubectl(t.Context(), "delete", "storageclass", "hand-made")
	require.NoError(t, err)
}

// TestAdoptByCommandAndManifest makes volumes of an image, of a directory that
// need not exist, and by a manifest alone.
func TestAdoptByCommandAndManifest(t *testing.T) {
	for door, class := range map[string]string{"local": "quarry", "csi": "quarry-csi"} {
		t.Run(door, func(t *testing.T) {
			ns := newNamespace(t)
			image := "/volumes/db-" + door + ".img"
			onHost(t, "node2", fmt.Sprintf("truncate -s 64M %[1]s && mkfs.ext4 -q %[1]s && mkdir -p /tmp/img && mount "+
				"-o loop %[1]s /tmp/img && echo old > /tmp/img/file && umount /tmp/img", image))
			mustPlugin(t, "adopt", "--node", "node2", "--path", image, "--type", "File", "--name", "imported-"+door,
				"--class", class, "--claim", ns+"/imported", "--reclaim-policy", "Delete", "--yes")
			claim(t, ns, "imported", class, "64Mi")
			pv := bound(t, ns, "imported")
			require.Equal(t, "imported-"+door, pv.Name)
			pod(t, ns, "imported", "imported", idle)
			require.Equal(t, "old", inPod(t, ns, "imported", "cat /data/file"))
			deletePod(t, ns, "imported")
			deleteClaim(t, ns, "imported")
			gone(t, pv)
			require.Empty(t, onHost(t, "node2", "ls -d "+image+" 2>/dev/null; true"))
		})
	}
	t.Run("manifest", func(t *testing.T) {
		ns := newNamespace(t)
		apply(t, ns, "-f", writeFile(t, `
apiVersion: quarry.storage/v1alpha1
kind: Volume
metadata: {name: by-manifest-1, labels: {quarry.storage/pv-name: by-manifest}}
spec:
  nodeName: node3
  pool: default
  enforcement: none
  backend: directory
  capacity: 64Mi
  reclaimPolicy: Delete
  storageClassName: quarry
  provisioner: local.quarry.storage
  adopt: {path: /volumes/not-there-yet, type: DirectoryOrCreate}
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: by-manifest
  annotations:
    pv.kubernetes.io/provisioned-by: local.quarry.storage
    quarry.storage/volume: by-manifest-1
    quarry.storage/node: node3
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: quarry
  claimRef: {namespace: `+ns+`, name: data}
  local: {path: /volumes/not-there-yet}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node3]}]
`))
		phaseOf(t, "by-manifest-1", "Ready")
		claim(t, ns, "data", "quarry", "64Mi")
		pv := bound(t, ns, "data")
		require.Equal(t, "by-manifest", pv.Name)
		pod(t, ns, "app", "data", `echo here > /data/file; `+idle)
		require.Equal(t, "here", inPod(t, ns, "app", "cat /data/file"))
		require.Equal(t, "here", onHost(t, "node3", "cat /volumes/by-manifest-1/data/file"))
		deletePod(t, ns, "app")
		deleteClaim(t, ns, "data")
		gone(t, pv)
		require.Empty(t, onHost(t, "node3", "ls -d /volumes/not-there-yet 2>/dev/null; true"))
	})
}

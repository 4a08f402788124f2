package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The administrator's commands, run as an administrator does: the program built
// from this tree, with a kubeconfig.

var buildPlugin = sync.OnceValues(func() (string, error) {
	// Beside the image, where `make clean` finds it.
	program, err := filepath.Abs("../../bin/kubectl-quarry")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", program, "./cmd/kubectl-quarry")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kubectl-quarry: %w\n%s", err, out)
	}
	return program, nil
})

// plugin runs kubectl quarry and returns what it printed, both to its output
// and to its errors.
func plugin(t testing.TB, args ...string) (string, error) {
	t.Helper()
	program, err := buildPlugin()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), program, append([]string{"--kubeconfig", cluster.Kubeconfig()},
		args...)...).CombinedOutput()
	t.Logf("kubectl quarry %s\n%s", strings.Join(args, " "), out)
	return string(out), err
}

// mustPlugin is plugin for a command that has to work.
func mustPlugin(t testing.TB, args ...string) string {
	t.Helper()
	out, err := plugin(t, args...)
	require.NoError(t, err, out)
	return out
}

// makeClass makes a StorageClass of a front door for the test.
func makeClass(t testing.TB, name, provisioner string, parameters map[string]string, more ...string) string {
	t.Helper()
	text := fmt.Sprintf("apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: "+
		"%s\nvolumeBindingMode: WaitForFirstConsumer\nallowVolumeExpansion: true\nparameters:\n", name, provisioner)
	for key, value := range parameters {
		text += fmt.Sprintf("  %s: %q\n", key, value)
	}
	out, err := cluster.Kubectl(t.Context(), "create", "-o", "name", "-f", writeFile(t, text+strings.Join(more, "\n")))
	require.NoError(t, err, string(out))
	t.Cleanup(func() { _, _ = cluster.Kubectl(contextForCleanup(), "delete", "storageclass", name) })
	return name
}

// doors are the two provisioners, by a short name.
var doors = map[string]string{"local": "local.quarry.storage", "csi": "csi.quarry.storage"}

// pvGone waits until the PersistentVolume does not exist.
func pvGone(t testing.TB, name string) {
	t.Helper()
	eventually(t, "PersistentVolume "+name+" is gone", func() (bool, string) {
		pv, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return true, ""
		}
		return false, string(pv.Status.Phase)
	})
}

// claimGone waits until the claim does not exist.
func claimGone(t testing.TB, ns, name string) {
	t.Helper()
	eventually(t, "claim "+name+" is gone", func() (bool, string) {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return true, ""
		}
		return false, string(c.Status.Phase)
	})
}

// phaseOf waits until a Volume has the phase.
func phaseOf(t testing.TB, id, phase string) {
	t.Helper()
	eventually(t, "Volume "+id+" is "+phase, func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "get", "volumes.quarry.storage", id, "-o",
			`jsonpath={.status.phase} {.status.conditions[?(@.type=="Ready")].message}`)
		return err == nil && strings.HasPrefix(string(out), phase), fmt.Sprint(string(out), err)
	})
}

func TestTrashIsTakenBack(t *testing.T) {
	for door, provisioner := range doors {
		t.Run(door, func(t *testing.T) {
			t.Parallel()
			class := makeClass(t, "trash-"+door, provisioner, map[string]string{"pool": "default", "onDelete": "trash",
				"trashRetention": "1h"})
			ns := newNamespace(t)
			claim(t, ns, "data", class, "64Mi", func(c *corev1.PersistentVolumeClaim) {
				c.Labels = map[string]string{"app": "db"}
			})
			pod(t, ns, "app", "data", `echo precious > /data/file; sync; `+idle)
			pv := bound(t, ns, "data")
			id, _ := whereIs(pv)
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			pvGone(t, pv.Name)
			phaseOf(t, id, "Trashed")
			require.Contains(t, mustPlugin(t, "trash", "list"), id)

			mustPlugin(t, "trash", "restore", id)
			back := bound(t, ns, "data")
			require.Equal(t, pv.Name, back.Name)
			require.Equal(t, pv.Spec.NodeAffinity, back.Spec.NodeAffinity)
			require.Equal(t, pv.Spec.PersistentVolumeReclaimPolicy, back.Spec.PersistentVolumeReclaimPolicy)
			c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
			require.NoError(t, err)
			require.Equal(t, "db", c.Labels["app"])
			pod(t, ns, "app", "data", idle)
			require.Equal(t, "precious", inPod(t, ns, "app", "cat /data/file"))

			// Deleted again: the restored objects are handled like any others.
			// Another claim has the name by now.
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			pvGone(t, pv.Name)
			phaseOf(t, id, "Trashed")
			claim(t, ns, "data", class, "64Mi")
			pod(t, ns, "app", "data", idle)
			out, err := plugin(t, "trash", "restore", id)
			require.Error(t, err)
			require.Contains(t, out, ns+"/data")
			phaseOf(t, id, "Trashed")

			mustPlugin(t, "trash", "purge", id, "--yes")
			gone(t, pv)
			require.NotContains(t, mustPlugin(t, "trash", "list"), id)

			other := bound(t, ns, "data")
			otherID, _ := whereIs(other)
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			pvGone(t, other.Name)
			phaseOf(t, otherID, "Trashed")
			mustPlugin(t, "trash", "purge", otherID, "--yes")
			gone(t, other)
		})
	}
}

func TestRescuedVolumeIsTakenBackOrDeleted(t *testing.T) {
	for door, class := range map[string]string{"local": "quarry", "csi": "quarry-csi"} {
		t.Run(door, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", class, "64Mi")
			pod(t, ns, "app", "data", `echo precious > /data/file; sync; `+idle)
			pv := bound(t, ns, "data")
			id, _ := whereIs(pv)
			rescue := func() {
				deletePod(t, ns, "app")
				_, err := cluster.Kubectl(t.Context(), "patch", "pv", pv.Name, "-p",
					`{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
				require.NoError(t, err)
				deleteClaim(t, ns, "data")
				claimGone(t, ns, "data")
				_, err = cluster.Kubectl(t.Context(), "delete", "pv", pv.Name)
				require.NoError(t, err)
				waitEvent(t, "default", id, "Orphaned", "restore "+id)
			}
			rescue()
			require.Contains(t, mustPlugin(t, "orphans", "list"), id)
			mustPlugin(t, "orphans", "restore", id)
			require.Equal(t, pv.Name, bound(t, ns, "data").Name)
			pod(t, ns, "app", "data", idle)
			require.Equal(t, "precious", inPod(t, ns, "app", "cat /data/file"))
			out, err := plugin(t, "orphans", "delete", id, "--yes")
			require.Error(t, err, "a PersistentVolume points at it: %s", out)

			rescue()
			// Kubelet may not have let go of it yet; then the wish is recorded,
			// and the command says so.
			if out, err := plugin(t, "orphans", "delete", id, "--yes"); err != nil {
				require.Contains(t, out, "it goes when it is free")
			}
			gone(t, pv)
		})
	}
}

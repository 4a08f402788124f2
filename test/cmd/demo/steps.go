package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/quarry-storage/quarry/test/testbed"
)

const (
	namespace = "quarry-system"
	mesh      = "easemesh"
	members   = 3
)

func member(i int) string  { return fmt.Sprintf("easemesh-control-plane-%d", i) }
func claimOf(i int) string { return "control-plane-pvc-" + member(i) }
func nodeOf(i int) string  { return fmt.Sprintf("node%d", i+1) }
func etcdctl(args ...string) []string {
	return append([]string{"etcdctl", "--endpoints=http://127.0.0.1:2379"}, args...)
}

// cluster makes the cluster, anew if one is up.
func (d *demo) cluster(nodes int) error {
	if _, err := testbed.Open(); !errors.Is(err, testbed.ErrNotFound) {
		fmt.Println("  a testbed is up; it is taken away first")
		if err := testbed.Down(d.ctx, progress()); err != nil {
			return err
		}
	}
	c, err := testbed.Up(d.ctx, testbed.Config{Nodes: nodes, Log: progress()})
	if err != nil {
		return err
	}
	d.c = c
	out, err := d.kubectl("get", "nodes", "-o", "wide")
	if err != nil {
		return err
	}
	return want(strings.Count(out, " Ready ") == nodes, "%d nodes are Ready", nodes)
}

func (d *demo) install(image string) error {
	fmt.Println("  loading the image on every node")
	if err := d.c.Load(d.ctx, image); err != nil {
		return err
	}
	chart := filepath.Join(d.root, "charts/quarry")
	args := []string{"upgrade", "--install", "quarry", chart, "--namespace", namespace, "--create-namespace", "--wait",
		"--timeout", "3m"}
	out, err := d.c.Helm(d.ctx, args...)
	if err != nil {
		return err
	}
	status, _, _ := strings.Cut(string(out), "NOTES:")
	show("helm "+quoted(args), []byte(status))
	// Helm counts a DaemonSet as ready while as many pods are missing as an
	// update may take down.
	if _, err := d.kubectl("rollout", "status", "-n", namespace, "daemonset/quarry-agent", "--timeout",
		"2m"); err != nil {
		return err
	}
	pods, err := d.kubectl("get", "pods", "-n", namespace, "-o", "wide")
	if err != nil {
		return err
	}
	if err := want(strings.Count(pods, "1/1") == len(d.c.Nodes())+2,
		"two controllers and an agent on every node run"); err != nil {
		return err
	}
	var pools string
	err = d.wait("every node offers its pool", func() (bool, string) {
		pools, _ = d.quietly("get", "pools.quarry.storage")
		return strings.Count(pools, "True") == len(d.c.Nodes()), pools
	})
	if err != nil {
		return err
	}
	_, err = d.kubectl("get", "pools.quarry.storage")
	return err
}

func (d *demo) easemesh() error {
	if _, err := d.kubectl("apply", "-k", filepath.Join(d.root, "examples/easemesh")); err != nil {
		return err
	}
	err := d.wait("the claims are bound", func() (bool, string) {
		out, err := d.quietly("get", "pvc", "-n", mesh, "-o", "jsonpath={.items[*].status.phase}")
		return err == nil && out == "Bound Bound Bound", out
	})
	if err != nil {
		return err
	}
	return d.healthy()
}

// healthy waits until all members of the etcd answer, each for itself.
func (d *demo) healthy() error {
	return d.wait("all three members are healthy", func() (bool, string) {
		for i := range members {
			ctx, cancel := context.WithTimeout(d.ctx, patience/10)
			out, err := d.c.Kubectl(ctx, append([]string{"exec", "-n", mesh, member(i), "-c", "easemesh-control-plane",
				"--"}, etcdctl("endpoint", "health")...)...)
			cancel()
			if err != nil {
				return false, fmt.Sprint(member(i), ": ", string(out), err)
			}
		}
		return true, ""
	})
}

func (d *demo) look() error {
	if _, err := d.kubectl("get", "storageclass"); err != nil {
		return err
	}
	claims, err := d.kubectl("get", "pvc", "-n", mesh)
	if err != nil {
		return err
	}
	for i := range members {
		if err := want(contains(claims, claimOf(i)), "claim %s is bound", claimOf(i)); err != nil {
			return err
		}
	}
	if _, err := d.kubectl("get", "pv"); err != nil {
		return err
	}
	if _, err := d.kubectl("get", "volumes.quarry.storage"); err != nil {
		return err
	}
	pv, err := d.pvOf(0)
	if err != nil {
		return err
	}
	described, err := d.kubectl("describe", "pv", pv)
	if err != nil {
		return err
	}
	return want(contains(described, "LocalVolume", "/volumes/", "kubernetes.io/hostname in ["+nodeOf(0)+"]",
		"3Gi", "easemesh-storage"),
		"it is a local volume of 3Gi under /volumes on %s", nodeOf(0))
}

func (d *demo) pvOf(i int) (string, error) {
	return d.quietly("get", "pvc", "-n", mesh, claimOf(i), "-o", "jsonpath={.spec.volumeName}")
}

// pathOf is the volume's path on its node.
func (d *demo) pathOf(i int) (string, error) {
	pv, err := d.pvOf(i)
	if err != nil {
		return "", err
	}
	return d.quietly("get", "pv", pv, "-o", "jsonpath={.spec.local.path}")
}

func (d *demo) disks() error {
	for i := range members {
		where, err := d.quietly("get", "pod", "-n", mesh, member(i), "-o", "jsonpath={.spec.nodeName} {.metadata.uid}")
		if err != nil {
			return err
		}
		node, uid, _ := strings.Cut(where, " ")
		if err := want(node == nodeOf(i), "%s runs on %s", member(i), nodeOf(i)); err != nil {
			return err
		}
		path, err := d.pathOf(i)
		if err != nil {
			return err
		}
		onDisk, err := d.node(node, "ls", "-l", path)
		if err != nil {
			return err
		}
		pv, err := d.pvOf(i)
		if err != nil {
			return err
		}
		kubelet := "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~local-volume/" + pv
		inKubelet, err := d.node(node, "ls", "-l", kubelet)
		if err != nil {
			return err
		}
		if err := want(contains(onDisk, "member") && onDisk == inKubelet, "the pod has the directory that "+
			"is on %s's disk", node); err != nil {
			return err
		}
		if i > 0 {
			continue // once is enough for what is the same on every node
		}
		if _, err := d.node(node, "ls", "-lA", "/volumes", strings.TrimSuffix(path, "/mount/data")); err != nil {
			return err
		}
		size, err := d.node(node, "df", "-h", path)
		if err != nil {
			return err
		}
		if err := want(contains(size, "/dev/loop"), "it is a filesystem of its own: its size is enforced"); err != nil {
			return err
		}
	}
	return nil
}

const answer = "42, as written at the start of the demo"

func (d *demo) write() error {
	out, err := d.kubectl(append([]string{"exec", "-n", mesh, member(0), "-c", "easemesh-control-plane", "--"},
		etcdctl("put", "answer", answer)...)...)
	if err != nil {
		return err
	}
	if err := want(contains(out, "OK"), "member 0 took a value"); err != nil {
		return err
	}
	return d.read(2)
}

// read reads the value through one member.
func (d *demo) read(i int) error {
	out, err := d.kubectl(append([]string{"exec", "-n", mesh, member(i), "-c", "easemesh-control-plane", "--"},
		etcdctl("get", "answer", "--print-value-only")...)...)
	if err != nil {
		return err
	}
	return want(strings.TrimSpace(strings.TrimPrefix(out, " ")) == answer, "member %d has it", i)
}

// memberID is the identity etcd keeps on its disk: the same one means the same
// disk.
func (d *demo) memberID(i int) (string, error) {
	return d.quietly(append([]string{"exec", "-n", mesh, member(i), "-c", "easemesh-control-plane", "--"},
		etcdctl("endpoint", "status", "-w", "fields")...)...)
}

func sameMember(before, after string) bool {
	id := func(fields string) string {
		for line := range strings.SplitSeq(fields, "\n") {
			if strings.Contains(line, "MemberID") {
				return line
			}
		}
		return ""
	}
	return id(before) != "" && id(before) == id(after)
}

func (d *demo) deletePod() error {
	before, err := d.memberID(1)
	if err != nil {
		return err
	}
	uid, err := d.quietly("get", "pod", "-n", mesh, member(1), "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return err
	}
	if _, err := d.kubectl("delete", "pod", "-n", mesh, member(1), "--grace-period=1"); err != nil {
		return err
	}
	if err := d.again(1, uid); err != nil {
		return err
	}
	after, err := d.memberID(1)
	if err != nil {
		return err
	}
	if err := want(sameMember(before, after), "the new pod is the same member: it found its disk"); err != nil {
		return err
	}
	return d.read(1)
}

// again waits for another pod of the member, and for all to be healthy.
func (d *demo) again(i int, formerUID string) error {
	err := d.wait("the StatefulSet makes "+member(i)+" again", func() (bool, string) {
		uid, err := d.quietly("get", "pod", "-n", mesh, member(i), "-o", "jsonpath={.metadata.uid}")
		return err == nil && uid != "" && uid != formerUID, uid
	})
	if err != nil {
		return err
	}
	return d.healthy()
}

func (d *demo) reboot() error {
	before, err := d.memberID(2)
	if err != nil {
		return err
	}
	fmt.Printf("  %s loses power: every process, mount and loop device of it is gone at once; its disk stays\n",
		nodeOf(2))
	if err := d.c.RebootNode(d.ctx, nodeOf(2)); err != nil {
		return err
	}
	if err := d.healthy(); err != nil {
		return err
	}
	after, err := d.memberID(2)
	if err != nil {
		return err
	}
	if err := want(sameMember(before, after), "after the reboot it is the same member: it found its disk"); err != nil {
		return err
	}
	return d.read(2)
}

func (d *demo) deleteClaim() error {
	if _, err := d.kubectl("apply", "-f", filepath.Join(d.root, "examples/quickstart")); err != nil {
		return err
	}
	err := d.wait("the quickstart's pod runs", func() (bool, string) {
		out, err := d.quietly("get", "pod", "quickstart", "-o", "jsonpath={.status.phase}")
		return err == nil && out == "Running", out
	})
	if err != nil {
		return err
	}
	where, err := d.quietly("get", "volumes.quarry.storage", "-o",
		`jsonpath={range .items[?(@.spec.claim.namespace=="default")]}{.spec.nodeName} {.metadata.name}{end}`)
	if err != nil {
		return err
	}
	node, id, _ := strings.Cut(where, " ")
	before, err := d.node(node, "ls", "/volumes")
	if err != nil {
		return err
	}
	if err := want(id != "" && contains(before, id), "%s has the directory", node); err != nil {
		return err
	}
	if _, err := d.kubectl("delete", "--grace-period=1", "-f",
		filepath.Join(d.root, "examples/quickstart")); err != nil {
		return err
	}
	err = d.wait("its PersistentVolume is gone", func() (bool, string) {
		out, err := d.quietly("get", "volumes.quarry.storage", id, "--ignore-not-found", "-o", "name")
		return err == nil && out == "", out
	})
	if err != nil {
		return err
	}
	after, err := d.node(node, "ls", "/volumes")
	if err != nil {
		return err
	}
	if err := want(!contains(after, id), "%s does not have it any more", node); err != nil {
		return err
	}
	_, err = d.kubectl("get", "pv")
	return err
}

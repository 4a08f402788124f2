package testbed

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/quarry-storage/quarry/test/testbed/cgroup"
	"github.com/quarry-storage/quarry/test/testbed/loop"
	"github.com/quarry-storage/quarry/test/testbed/network"
	"github.com/quarry-storage/quarry/test/testbed/node"
	"golang.org/x/sync/errgroup"
)

// How long the parts of a start or a stop may take before they count as failed.
// A machine that is busy compiling is the reason for the size.
const (
	bootTimeout  = time.Minute
	readyTimeout = 4 * time.Minute
	deathTimeout = time.Minute
)

// record is what a node boots from, kept in its directory.
type record struct {
	Files []node.File
	Disks []insertedDisk // the system disk first
}

// insertedDisk is a disk that the node mounts at its next start.
type insertedDisk struct {
	Disk
	Image string
}

// createNode makes the node's directory, disks and record.
func (c *Cluster) createNode(ctx context.Context, index int, credentials *credentials) error {
	name := nodeName(index)
	if err := os.MkdirAll(c.node(name).Dir, 0o700); err != nil {
		return err
	}
	secrets, err := credentials.nodeFiles(index)
	if err != nil {
		return err
	}
	r := record{Files: slices.Concat(c.state.Config.configFiles(index), secrets)}
	// The system disk needs no journal: its writer, the kernel, survives the
	// node.
	system := Disk{Path: "/", Filesystem: "ext4", Size: defaultDiskSize, MkfsArgs: []string{"-O", "^has_journal"}}
	for _, disk := range slices.Concat([]Disk{system, c.state.Config.Pool}, c.state.Config.ExtraPools) {
		image, err := c.makeImage(ctx, name, disk)
		if err != nil {
			return err
		}
		r.Disks = append(r.Disks, insertedDisk{disk, image})
	}
	return c.writeRecord(name, r)
}

// powerOn boots the nodes, at the same time, and returns the boot id of each.
// Before anything else, the directories to wipe are removed in each.
func (c *Cluster) powerOn(ctx context.Context, names []string, wipe []string) (map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("not booted within %s", bootTimeout))
	defer cancel()
	boots := map[string]string{}
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		id := newBootID()
		boots[name] = id
		group.Go(func() error { return c.boot(ctx, name, id, wipe) })
	}
	return boots, group.Wait()
}

func (c *Cluster) boot(ctx context.Context, name, id string, wipe []string) error {
	index, err := c.state.Config.nodeIndex(name)
	if err != nil {
		return err
	}
	r, err := c.readRecord(name)
	if err != nil {
		return err
	}
	if err := cgroup.Create(nodeCgroup(name)); err != nil {
		return err
	}
	boot := node.Boot{
		Hostname: name, ID: id, Path: searchPath, Files: r.Files, Wipe: wipe,
		Binds: []node.Bind{{Source: c.state.Kube, Target: binDir + "/kube"}, {Source: c.state.Containerd,
			Target: binDir + "/containerd"}},
	}
	for _, disk := range r.Disks {
		device, err := loop.Attach(disk.Image)
		if err != nil {
			return err
		}
		defer device.Close() // when the node has mounted it, or nobody ever will
		boot.Disks = append(boot.Disks, disk.on(device.Name()))
	}
	boot.System, boot.Disks = boot.Disks[0], boot.Disks[1:]
	starting, err := c.node(name).Start()
	if err != nil {
		return err
	}
	if err := c.network().Plug(starting.PID, name, index, c.state.Config.Nodes); err != nil {
		return errors.Join(err, starting.Cancel())
	}
	return starting.Boot(ctx, boot)
}

// KillNode cuts a node's power: everything in it dies at once, its loop devices
// and network go, its disks stay. A node that is not running is no error.
func (c *Cluster) KillNode(ctx context.Context, name string) error {
	if _, err := c.state.Config.nodeIndex(name); err != nil {
		return err
	}
	c.log.printf("%s: power off", name)
	ctx, cancel := context.WithTimeoutCause(ctx, deathTimeout, fmt.Errorf("not within %s", deathTimeout))
	defer cancel()
	if err := c.node(name).Kill(ctx); err != nil {
		return err
	}
	if err := c.network().Unplug(name); err != nil {
		return err
	}
	images, err := c.imagesOf(name)
	if err != nil {
		return err
	}
	if err := loop.Release(ctx, images); err != nil {
		return fmt.Errorf("free the disks of %s: %w", name, err)
	}
	return cgroup.Remove(ctx, nodeCgroup(name))
}

// StartNode turns the power of a node on and returns when it is Ready in this
// new life. A node that is running is an error.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	return c.startNode(ctx, name, nil)
}

func (c *Cluster) startNode(ctx context.Context, name string, wipe []string) error {
	if err := c.mustBeOff(name); err != nil {
		return err
	}
	c.log.printf("%s: power on", name)
	boots, err := c.powerOn(ctx, []string{name}, wipe)
	if err != nil {
		return err
	}
	if err := c.startKubernetes(ctx, boots); err != nil {
		return err
	}
	c.log.printf("%s: Ready", name)
	return nil
}

// RebootNode is KillNode and StartNode.
func (c *Cluster) RebootNode(ctx context.Context, name string) error {
	if err := c.KillNode(ctx, name); err != nil {
		return err
	}
	return c.StartNode(ctx, name)
}

// RebuildNode makes another machine of a node, under the same name and address,
// as an administrator does who replaces one that burnt down: another
// machine-id, blank disks in place of all but the system disk, nothing left of
// kubelet's state. It returns the old disks' images, by path; they are in use
// by nobody.
func (c *Cluster) RebuildNode(ctx context.Context, name string) (old map[string]string, err error) {
	if name == nodeName(1) {
		return nil, fmt.Errorf("%s has the control plane: it is not rebuilt alone", name)
	}
	if err := c.KillNode(ctx, name); err != nil {
		return nil, err
	}
	r, err := c.readRecord(name)
	if err != nil {
		return nil, err
	}
	old = map[string]string{}
	for i := range r.Disks[1:] { // the first is the system disk
		disk := &r.Disks[1+i]
		old[disk.Path] = disk.Image
		if disk.Image, err = c.makeImage(ctx, name, disk.Disk); err != nil {
			return nil, err
		}
	}
	for i := range r.Files {
		if r.Files[i].Path == machineIDFile {
			r.Files[i].Content = []byte(strings.ReplaceAll(newBootID(), "-", "") + "\n")
		}
	}
	if err := c.writeRecord(name, r); err != nil {
		return nil, err
	}
	c.log.printf("%s: another machine", name)
	return old, c.startNode(ctx, name, []string{kubeletDir, "/var/lib/cni"})
}

// ResetControlPlane makes the cluster anew on the same nodes, as an
// administrator does who has lost etcd: all nodes lose power, everything
// Kubernetes knew is wiped (etcd's data and kubelet's), and the nodes join
// again. Pools, images and credentials stay.
func (c *Cluster) ResetControlPlane(ctx context.Context) error {
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, name := range c.Nodes() {
		group.Go(func() error { return c.KillNode(groupCtx, name) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.log.printf("wiping what Kubernetes knew")
	boots, err := c.powerOn(ctx, c.Nodes(), []string{etcdDir, kubeletDir, "/var/lib/cni", "/var/log/pods",
		"/var/log/containers"})
	if err != nil {
		return err
	}
	return c.startKubernetes(ctx, boots)
}

func (c *Cluster) mustBeOff(name string) error {
	if _, err := c.state.Config.nodeIndex(name); err != nil {
		return err
	}
	if pid, err := c.node(name).PID(); err != nil || pid != 0 {
		return errors.Join(err, fmt.Errorf("%s is running", name))
	}
	return nil
}

func (c *Cluster) recordFile(name string) string { return filepath.Join(c.node(name).Dir, "node.json") }

func (c *Cluster) writeRecord(name string, r record) error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeFile(c.recordFile(name), content)
}

func (c *Cluster) readRecord(name string) (record, error) {
	var r record
	content, err := os.ReadFile(c.recordFile(name))
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read the record of %s: %w", name, err)
	}
	return r, nil
}

// newBootID is a random UUID, as the kernel makes one at every boot.
func newBootID() string {
	b := make([]byte, 16)
	rand.Read(b) //nolint:errcheck // never fails: crypto/rand
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Subnet is where the nodes' addresses are.
func Subnet() string { return network.Subnet.String() }

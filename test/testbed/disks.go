package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/test/testbed/loop"
	"github.com/quarry-storage/quarry/test/testbed/node"
)

// NewDisk makes a blank disk for a node, in no use yet, and returns its image
// file, for InsertDisk.
func (c *Cluster) NewDisk(ctx context.Context, name string, disk Disk) (image string, err error) {
	if _, err := c.state.Config.nodeIndex(name); err != nil {
		return "", err
	}
	if err := disk.setDefaults(); err != nil {
		return "", err
	}
	return c.makeImage(ctx, name, disk)
}

// PullDisk unmounts the disk at a path of a running node and leaves it out of
// its coming lives, until InsertDisk. It returns the disk's image. A disk that
// is in use stays: the error says busy.
func (c *Cluster) PullDisk(ctx context.Context, name, path string) (image string, err error) {
	r, err := c.readRecord(name)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(r.Disks, func(d insertedDisk) bool { return d.Path == path })
	if i <= 0 { // the first is the system disk
		return "", fmt.Errorf("%s has no disk at %s", name, path)
	}
	image = r.Disks[i].Image
	if err := c.node(name).Unmount(ctx, path); err != nil {
		return "", err
	}
	r.Disks = slices.Delete(r.Disks, i, i+1)
	return image, c.writeRecord(name, r)
}

// InsertDisk mounts an image (from PullDisk or NewDisk, of any node) at the
// disk's path of a running node, now and in its coming lives. Disk must say
// what filesystem the image has.
func (c *Cluster) InsertDisk(ctx context.Context, name string, disk Disk, image string) error {
	if err := disk.setDefaults(); err != nil {
		return err
	}
	if images, err := diskImages(c.dir); err != nil || !slices.Contains(images, image) {
		return errors.Join(err, fmt.Errorf("%s is no disk of this testbed", image))
	}
	r, err := c.readRecord(name)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(r.Disks, func(d insertedDisk) bool { return d.Path == disk.Path }) {
		return fmt.Errorf("%s has a disk at %s already: pull it first", name, disk.Path)
	}
	inserted := insertedDisk{disk, image}
	r.Disks = append(r.Disks, inserted)
	if err := c.writeRecord(name, r); err != nil { // first: killed now, the next start mounts it
		return err
	}
	device, err := loop.Attach(image)
	if err != nil {
		return err
	}
	defer device.Close()
	return c.node(name).Mount(ctx, inserted.on(device.Name()))
}

// SwapDisks puts the disk at a path of each of two nodes into the other, while
// both are off.
func (c *Cluster) SwapDisks(ctx context.Context, one, other, path string) error {
	records := map[string]record{}
	at := map[string]int{}
	for _, name := range []string{one, other} {
		if err := c.mustBeOff(name); err != nil {
			return err
		}
		r, err := c.readRecord(name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(r.Disks, func(d insertedDisk) bool { return d.Path == path })
		if i <= 0 { // the first is the system disk
			return fmt.Errorf("%s has no disk at %s", name, path)
		}
		records[name], at[name] = r, i
	}
	a, b := &records[one].Disks[at[one]], &records[other].Disks[at[other]]
	*a, *b = *b, *a
	return errors.Join(c.writeRecord(one, records[one]), c.writeRecord(other, records[other]))
}

// DiskImage is the file of the disk that a node has at a path, by now.
func (c *Cluster) DiskImage(name, path string) (string, error) {
	r, err := c.readRecord(name)
	if err != nil {
		return "", err
	}
	for _, disk := range r.Disks {
		if disk.Path == path {
			return disk.Image, nil
		}
	}
	return "", fmt.Errorf("%s has no disk at %s", name, path)
}

// imagesOf are the images that only this node can have in use: its own, but for
// those that another node has by now, and those it got from others.
func (c *Cluster) imagesOf(name string) ([]string, error) {
	images, err := filepath.Glob(filepath.Join(c.node(name).Dir, "disks", "*"))
	if err != nil {
		return nil, err
	}
	for _, other := range c.Nodes() {
		r, err := c.readRecord(other)
		if err != nil {
			return nil, err
		}
		for _, disk := range r.Disks {
			if other == name {
				images = append(images, disk.Image)
			} else {
				images = slices.DeleteFunc(images, func(image string) bool { return image == disk.Image })
			}
		}
	}
	return images, nil
}

// on is the disk as the node mounts it from a device.
func (d insertedDisk) on(device string) node.Disk {
	return node.Disk{Device: device, Path: d.Path, Filesystem: d.Filesystem, Options: d.MountOptions}
}

// makeImage makes a sparse image file with an empty filesystem in the node's
// disks directory. The rename at the end commits: a file with the final name is
// a whole filesystem.
func (c *Cluster) makeImage(ctx context.Context, name string, disk Disk) (string, error) {
	dir := filepath.Join(c.node(name).Dir, "disks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	label := strings.ReplaceAll(strings.Trim(disk.Path, "/"), "/", "-")
	if label == "" {
		label = "system"
	}
	image, err := unusedName(filepath.Join(dir, label), ".img")
	if err != nil {
		return "", err
	}
	temporary := image + ".tmp"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	err = file.Truncate(disk.Size)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return "", fmt.Errorf("make the disk %s: %w", image, err)
	}
	make := slices.Concat(mkfs[disk.Filesystem], disk.MkfsArgs, []string{temporary})
	if output, err := exec.CommandContext(ctx, make[0], make[1:]...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make a filesystem on the disk %s: %w: %s", image, err, output)
	}
	return image, os.Rename(temporary, image)
}

func unusedName(stem, suffix string) (string, error) {
	for i := 1; ; i++ {
		name := stem + suffix
		if i > 1 {
			name = fmt.Sprintf("%s-%d%s", stem, i, suffix)
		}
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
}

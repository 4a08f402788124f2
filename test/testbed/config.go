package testbed

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Config says what cluster to make. The zero value is one node with a pool of
// 20 GiB on ext4.
type Config struct {
	// Nodes is how many nodes there are: node1, which runs the control plane as
	// well, to nodeN.
	Nodes int
	// Pool is every node's disk at /volumes (the default of its Path).
	Pool Disk
	// ExtraPools are further disks of every node.
	ExtraPools []Disk
	// HostnameLabels gives nodes a label kubernetes.io/hostname that differs
	// from their name.
	HostnameLabels map[string]string
	// ExtraArgs are added to the command lines of programs, by their names:
	// "kube-apiserver", "kubelet", ...
	ExtraArgs map[string][]string
	// Log is told what goes on, for people. Nil: nobody.
	Log io.Writer `json:"-"`
}

// Disk is one filesystem of its own in each node, on a sparse image file and a
// loop device.
type Disk struct {
	Path         string   // where it is mounted in the node
	Filesystem   string   // "ext4" (the default), "xfs" or "btrfs"
	Size         int64    // bytes; 0 means 20 GiB
	MountOptions string   // of the filesystem, comma separated
	MkfsArgs     []string // further arguments for mkfs
}

const (
	gibibyte        = 1 << 30
	defaultPoolPath = "/volumes"
	defaultDiskSize = 20 * gibibyte
	maxNodes        = 50
)

// mkfs is how each filesystem is made on an image file. Nothing is discarded at
// first: the image is sparse anyway.
var mkfs = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "nodiscard"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-K"},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
}

// withDefaults returns the config with everything filled in, or what is wrong
// with it.
func (c Config) withDefaults() (Config, error) {
	if c.Nodes == 0 {
		c.Nodes = 1
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return c, fmt.Errorf("%d nodes: the testbed can have 1 to %d", c.Nodes, maxNodes)
	}
	if c.Pool.Path == "" {
		c.Pool.Path = defaultPoolPath
	}
	c.ExtraPools = slices.Clone(c.ExtraPools)
	disks := []*Disk{&c.Pool}
	for i := range c.ExtraPools {
		disks = append(disks, &c.ExtraPools[i])
	}
	paths := map[string]bool{}
	for _, disk := range disks {
		if err := disk.setDefaults(); err != nil {
			return c, err
		}
		if paths[disk.Path] {
			return c, fmt.Errorf("two disks at %s", disk.Path)
		}
		paths[disk.Path] = true
	}
	for name := range c.HostnameLabels {
		if !slices.Contains(c.nodeNames(), name) {
			return c, fmt.Errorf("a hostname label for %s, but there is no such node", name)
		}
	}
	return c, nil
}

func (d *Disk) setDefaults() error {
	if !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path || d.Path == "/" {
		return fmt.Errorf("disk path %q: want an absolute path", d.Path)
	}
	if d.Filesystem == "" {
		d.Filesystem = "ext4"
	}
	if mkfs[d.Filesystem] == nil {
		return fmt.Errorf("disk %s: filesystem %q: want ext4, xfs or btrfs", d.Path, d.Filesystem)
	}
	if d.Size == 0 {
		d.Size = defaultDiskSize
	}
	if d.Size < 0 {
		return fmt.Errorf("disk %s: size %d", d.Path, d.Size)
	}
	return nil
}

func (c Config) nodeNames() []string {
	var names []string
	for i := range c.Nodes {
		names = append(names, nodeName(i+1))
	}
	return names
}

func nodeName(index int) string { return "node" + strconv.Itoa(index) }

// nodeIndex counts from 1.
func (c Config) nodeIndex(name string) (int, error) {
	index := slices.Index(c.nodeNames(), name) + 1
	if index == 0 {
		return 0, fmt.Errorf("there is no node %q: there are %s", name, strings.Join(c.nodeNames(), ", "))
	}
	return index, nil
}

// ParseDisk reads a disk written as PATH=FILESYSTEM:SIZE[:MOUNT_OPTIONS], as in
// /volumes-fast=xfs:2Gi:prjquota.
func ParseDisk(s string) (Disk, error) {
	mountPoint, rest, ok := strings.Cut(s, "=")
	fields := strings.SplitN(rest, ":", 3)
	if !ok || len(fields) < 2 {
		return Disk{}, fmt.Errorf("disk %q: want PATH=FILESYSTEM:SIZE[:MOUNT_OPTIONS]", s)
	}
	size, err := ParseSize(fields[1])
	if err != nil {
		return Disk{}, fmt.Errorf("disk %q: %w", s, err)
	}
	disk := Disk{Path: mountPoint, Filesystem: fields[0], Size: size}
	if len(fields) == 3 {
		disk.MountOptions = fields[2]
	}
	return disk, disk.setDefaults()
}

// ParseSize reads a number of bytes, with a suffix Ki, Mi, Gi or Ti or none.
func ParseSize(s string) (int64, error) {
	number, shift := s, 0
	for i, suffix := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if before, ok := strings.CutSuffix(s, suffix); ok {
			number, shift = before, 10*(i+1)
		}
	}
	size, err := strconv.ParseInt(number, 10, 64)
	if err == nil && (size <= 0 || size<<shift>>shift != size) {
		err = errors.New("out of range")
	}
	if err != nil {
		return 0, fmt.Errorf("size %q: want a number of bytes such as 512Mi or 20Gi: %w", s, err)
	}
	return size << shift, nil
}

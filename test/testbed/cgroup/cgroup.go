// Package cgroup makes and removes control groups in every hierarchy the
// machine has: the single one of cgroup v2, or the many of cgroup v1 (with or
// without a v2 hierarchy beside them). See cgroups(7).
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const mountpoint = "/sys/fs/cgroup"

// Create makes the group ("/a/b") and its parents in every hierarchy, ready to
// hold groups of containers. A group that exists is no error.
func Create(group string) error {
	if unified() {
		return createUnified(group)
	}
	hierarchies, err := roots()
	if err != nil {
		return err
	}
	for _, root := range hierarchies {
		if err := os.MkdirAll(filepath.Join(root, group), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if _, err := os.Stat(filepath.Join(root, "cpuset.cpus")); err == nil {
			if err := inheritCPUSet(root, group); err != nil {
				return err
			}
		}
	}
	return nil
}

// createUnified makes the group in the v2 hierarchy and hands every controller
// the parents have on to it: the group's own children get what their parent
// enables.
func createUnified(group string) error {
	directory := mountpoint
	for _, name := range append([]string{""}, split(group)...) {
		directory = filepath.Join(directory, name)
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		controllers, err := os.ReadFile(filepath.Join(directory, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("make cgroup %s: %w", group, err)
		}
		for controller := range strings.FieldsSeq(string(controllers)) {
			// One at a time: a controller that this kernel refuses to delegate
			// must not keep the others back.
			err := os.WriteFile(filepath.Join(directory, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			if err != nil && required[controller] {
				return fmt.Errorf("enable the cgroup controller %s: %w", controller, err)
			}
		}
	}
	return nil
}

// required are the v2 controllers kubelet refuses to start without.
var required = map[string]bool{"cpu": true, "cpuset": true, "memory": true, "pids": true}

// inheritCPUSet fills the cpuset of the group and its parents from the top
// down: a new v1 cpuset is empty, and nothing can run in an empty one.
func inheritCPUSet(root, group string) error {
	parent := root
	for _, name := range split(group) {
		child := filepath.Join(parent, name)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(parent, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(child, file), value, 0o644)
			}
			if err != nil {
				return fmt.Errorf("fill %s of %s: %w", file, child, err)
			}
		}
		parent = child
	}
	return nil
}

// Remove removes the group and all below it from every hierarchy. Its processes
// must be dead, but may not have been buried yet: Remove tries until ctx ends.
// A group that does not exist is no error.
func Remove(ctx context.Context, group string) error {
	for {
		left, err := Find(group)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, directory := range left {
			err = removeTree(directory)
		}
		if err == nil {
			continue // look again, to be sure
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", group, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Find returns the group's directories, one for each hierarchy it exists in.
func Find(group string) ([]string, error) {
	hierarchies, err := roots()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, root := range hierarchies {
		directory := filepath.Join(root, group)
		if _, err := os.Stat(directory); err == nil {
			found = append(found, directory)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return found, nil
}

// removeTree removes a group's directory from the bottom up. os.RemoveAll
// cannot: a group's files cannot be unlinked.
func removeTree(directory string) error {
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(directory, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(directory); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: directory, Err: err}
	}
	return nil
}

// roots returns where the hierarchies are mounted.
func roots() ([]string, error) {
	if unified() {
		return []string{mountpoint}, nil
	}
	entries, err := os.ReadDir(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	var found []string
	for _, entry := range entries {
		if entry.IsDir() { // and not a link, as "cpu" may be to "cpu,cpuacct"
			found = append(found, filepath.Join(mountpoint, entry.Name()))
		}
	}
	return found, nil
}

func unified() bool {
	var stat unix.Statfs_t
	return unix.Statfs(mountpoint, &stat) == nil && stat.Type == unix.CGROUP2_SUPER_MAGIC
}

func split(group string) []string { return strings.Split(strings.Trim(group, "/"), "/") }

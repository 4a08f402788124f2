package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/test/testbed/cgroup"
	"github.com/quarry-storage/quarry/test/testbed/loop"
	"github.com/quarry-storage/quarry/test/testbed/network"
	"github.com/quarry-storage/quarry/test/testbed/node"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Down takes the testbed away, whatever state it is in, and fails if anything
// is left. Without one, it does nothing.
func Down(ctx context.Context, log io.Writer) error {
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	return down(ctx, newReporter(log))
}

// Down takes the cluster away.
func (c *Cluster) Down(ctx context.Context) error { return Down(ctx, c.log.out) }

// down goes by what the kernel and the directory hold, and not by what a record
// says there should be. Everything in it can be done twice.
func down(ctx context.Context, log *reporter) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deathTimeout, fmt.Errorf("not within %s", deathTimeout))
	defer cancel()
	dir := Dir()
	running, err := node.Running(dir)
	if err != nil {
		return err
	}
	log.printf("taking down %d running node(s)", len(running))
	group, groupCtx := errgroup.WithContext(ctx)
	for nodeDir := range running {
		group.Go(func() error { return node.Node{Name: filepath.Base(nodeDir), Dir: nodeDir}.Kill(groupCtx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	images, err := diskImages(dir)
	if err != nil {
		return err
	}
	if err := loop.Release(ctx, images); err != nil {
		return err
	}
	if err := (&Cluster{dir: dir}).network().Remove(); err != nil {
		return err
	}
	if err := cgroup.Remove(ctx, cgroupRoot); err != nil {
		return err
	}
	if err := removeDir(dir); err != nil {
		return err
	}
	left, err := Leftovers()
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return errors.New("left behind: " + strings.Join(left, ", "))
	}
	return nil
}

// removeDir removes the testbed's directory. $QUARRY_TESTBED_DIR could name
// anything, so it must be one that Up made.
func removeDir(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, stateFile)); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, stateFile+".tmp")); err == nil {
			err = os.Remove(filepath.Join(dir, stateFile+".tmp")) // killed at its very first write
			if err != nil {
				return err
			}
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s, which is no testbed's directory: %w", dir, err)
		}
		return nil
	}
	// The record goes last: while anything is left, it tells whose it is.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() != stateFile {
			if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
				return fmt.Errorf("remove the testbed's directory: %w", err)
			}
		}
	}
	return os.RemoveAll(dir)
}

// Leftovers lists everything of a testbed that the machine has: what is there
// while one is up, and must not be after Down.
func Leftovers() ([]string, error) {
	dir := Dir()
	var left []string
	running, err := node.Running(dir)
	if err != nil {
		return nil, err
	}
	for nodeDir, pid := range running {
		left = append(left, fmt.Sprintf("process %d (%s)", pid, filepath.Base(nodeDir)))
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return nil, err
	}
	for _, mount := range mounts {
		left = append(left, "mount "+mount)
	}
	images, err := diskImages(dir)
	if err != nil {
		return nil, err
	}
	devices, err := loop.On(images)
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		left = append(left, "loop device "+device.Path)
	}
	if network.MachineLinkExists() {
		left = append(left, "network link "+network.MachineLink)
	}
	groups, err := cgroup.Find(cgroupRoot)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		left = append(left, "cgroup "+group)
	}
	if _, err := os.Lstat(dir); err == nil {
		left = append(left, "directory "+dir)
	}
	slices.Sort(left)
	return left, nil
}

func diskImages(dir string) ([]string, error) {
	return filepath.Glob(filepath.Join(dir, "nodes", "*", "disks", "*"))
}

// mountsBelow lists the machine's mounts in a directory: proc_pid_mountinfo(5),
// the fifth field.
func mountsBelow(dir string) ([]string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return found, nil
}

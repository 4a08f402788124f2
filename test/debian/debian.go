// Package debian installs the programs that the targets of the Makefile call
// and that are not built here. It imports nothing that takes long to compile:
// what a target needs is asked for before anything is built.
package debian

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Need is a program and the Debian package it comes in.
type Need struct {
	Program string // a name, or an absolute path
	Package string
	Static  bool // only a program without an interpreter counts
}

// What each kind of target calls.
var (
	// Filesystems are the tools that go into Quarry's image, and that the tests
	// of the agent run.
	Filesystems = []Need{
		{Program: "mkfs.ext4", Package: "e2fsprogs"},
		{Program: "mkfs.xfs", Package: "xfsprogs"},
		{Program: "mkfs.btrfs", Package: "btrfs-progs"},
		{Program: "e2fsck", Package: "e2fsprogs"},
		{Program: "chattr", Package: "e2fsprogs"},
		{Program: "mount", Package: "mount"},
		{Program: "umount", Package: "mount"},
		{Program: "losetup", Package: "mount"},
		{Program: "swapon", Package: "mount"},
		{Program: "swapoff", Package: "mount"},
		{Program: "nsenter", Package: "util-linux"},
		{Program: "unshare", Package: "util-linux"},
		{Program: "fstrim", Package: "util-linux"},
		{Program: "blkdiscard", Package: "util-linux"},
		{Program: "fsfreeze", Package: "util-linux"},
		{Program: "flock", Package: "util-linux"},
	}
	// Testbed is what a cluster on this machine needs.
	Testbed = slices.Concat(Filesystems, []Need{
		{Program: "runc", Package: "runc"},
		{Program: "/usr/lib/cni/ptp", Package: "containernetworking-plugins"},
		// The other package's busybox needs libraries an image does not have.
		{Program: "busybox", Package: "busybox-static", Static: true},
		{Program: "iptables", Package: "iptables"},
		{Program: "pgrep", Package: "procps"},
		{Program: "kill", Package: "procps"},
	})
	// Machine is what another kernel in QEMU needs.
	Machine = []Need{
		{Program: "qemu-system-x86_64", Package: "qemu-system-x86"},
		{Program: "/sbin/modprobe", Package: "kmod"},
		{Program: "depmod", Package: "kmod"},
		{Program: "xz", Package: "xz-utils"},
		{Program: "mkfs.ext4", Package: "e2fsprogs"},
		{Program: "env", Package: "coreutils"},
	}
	// Fresh is what makes another Debian's root filesystem.
	Fresh = []Need{
		{Program: "mmdebstrap", Package: "mmdebstrap"},
		{Program: "chroot", Package: "coreutils"},
	}
	// Bench is what the benchmarks measure disks with.
	Bench = []Need{{Program: "fio", Package: "fio"}}
	// Race is what Go's race detector is linked with.
	Race = []Need{
		{Program: "gcc", Package: "gcc"},
		{Program: "/usr/include/stdlib.h", Package: "libc6-dev"},
	}
)

// Essential are programs that every Debian has: of its essential packages.
var Essential = []string{"cp", "dd", "find", "sleep", "tail", "true", "tar", "sh"}

// Sets are the kinds of targets by name.
var Sets = map[string][]Need{"filesystems": Filesystems, "testbed": Testbed, "machine": Machine, "race": Race,
	"bench": Bench, "fresh": Fresh}

// Find returns a program's path. It looks where an administrator's tools are,
// too, which an ordinary user's PATH does not name.
func Find(program string) (string, error) {
	if strings.HasPrefix(program, "/") {
		_, err := os.Stat(program)
		return program, err
	}
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", program))
}

// Static finds a program that needs no library and no dynamic linker.
func Static(need Need) (string, error) {
	path, err := Find(need.Program)
	if err != nil {
		return "", fmt.Errorf("find %s (Debian package %s): %w", need.Program, need.Package, err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	file, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("look into %s: %w", path, err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is linked dynamically: install the Debian package %s", path, need.Package)
		}
	}
	return path, nil
}

// Missing returns the packages whose programs are not here, each once, in the
// order of the needs.
func Missing(needs []Need) []string {
	var missing []string
	for _, need := range needs {
		_, err := Find(need.Program)
		if err == nil && need.Static {
			_, err = Static(need)
		}
		if err != nil && !slices.Contains(missing, need.Package) {
			missing = append(missing, need.Package)
		}
	}
	return missing
}

// Install installs what is missing, with apt-get, as root; it does nothing
// where nothing is. It looks again afterwards.
func Install(ctx context.Context, progress func(format string, args ...any), needs []Need) error {
	missing := Missing(needs)
	if len(missing) == 0 {
		return nil
	}
	byHand := "apt-get install --no-install-recommends " + strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this machine lacks what these Debian packages have, and has no apt-get to install them: %s",
			strings.Join(missing, " "))
	}
	if os.Geteuid() != 0 {
		return errors.New("Debian packages are missing, and only root can install them: " + byHand)
	}
	progress("%s", byHand)
	install := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
	err := aptGet(ctx, install...)
	if err != nil { // perhaps the package lists are old, or were never fetched
		progress("apt-get update")
		if err = aptGet(ctx, "update"); err == nil {
			err = aptGet(ctx, install...)
		}
	}
	if err != nil {
		return fmt.Errorf("install Debian packages: %w\nInstall them by hand and try again: %s", err, byHand)
	}
	if still := Missing(needs); len(still) > 0 {
		return fmt.Errorf("still missing after %s: %s", byHand, strings.Join(still, " "))
	}
	return nil
}

// Update fetches the lists of packages anew.
func Update(ctx context.Context) error { return aptGet(ctx, "update") }

func aptGet(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"},
		arguments...)...)
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", arguments[0], err, output)
	}
	return nil
}

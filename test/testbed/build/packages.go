package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// debianPackages maps a file or command the testbed needs to the Debian package it comes in.
var debianPackages = []struct{ file, pkg string }{
	{"runc", "runc"},
	{"/usr/lib/cni/ptp", "containernetworking-plugins"},
	{"busybox", "busybox-static"},
	{"iptables", "iptables"},
	{"nsenter", "util-linux"},
	{"mount", "mount"},
	{"mkfs.ext4", "e2fsprogs"},
	{"mkfs.xfs", "xfsprogs"},
	{"mkfs.btrfs", "btrfs-progs"},
}

// InstallPackages installs what is missing of the programs that are not built: with apt-get, as root, on Debian.
func (c *Cache) InstallPackages(ctx context.Context) error {
	var missing []string
	for _, need := range debianPackages {
		if _, err := exec.LookPath(need.file); err != nil {
			missing = append(missing, need.pkg)
		}
	}
	if _, err := staticBusybox(); err != nil && len(missing) == 0 {
		missing = append(missing, "busybox-static")
	}
	if len(missing) == 0 {
		return nil
	}
	byHand := "apt-get install " + strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this machine lacks what these Debian packages have, and has no apt-get to install them: %s", strings.Join(missing, " "))
	}
	if os.Geteuid() != 0 {
		return errors.New("Debian packages are missing, and only root can install them: " + byHand)
	}
	c.Progress("apt-get install %s", strings.Join(missing, " "))
	install := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
	err := aptGet(ctx, install...)
	if err != nil { // perhaps the package lists are old, or were never fetched
		if err = aptGet(ctx, "update"); err == nil {
			err = aptGet(ctx, install...)
		}
	}
	if err != nil {
		return fmt.Errorf("install Debian packages: %w\nInstall them by hand and try again: %s", err, byHand)
	}
	return nil
}

func aptGet(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, "apt-get", arguments...)
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", arguments[0], err, output)
	}
	return nil
}

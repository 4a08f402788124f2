package nodeagent

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what of a machine decides which ways of Quarry work on it. What
// cannot be found out is empty.
type Machine struct {
	// Kernel is its release, such as 6.12.5-talos.
	Kernel string
	// OS is the name that it gives itself, such as "Fedora CoreOS 43".
	OS string
	// Cgroups is v1 or v2.
	Cgroups string
	// SELinux is enforcing, permissive or off.
	SELinux string
	// ReadOnlyRoot is set where nothing can be made in the root directory.
	ReadOnlyRoot bool
}

// The oldest kernel that is supported: README, "Install".
const oldestMajor, oldestMinor = 5, 14

// ThisMachine looks at the machine that the process runs on, not at the
// container that it runs in.
func ThisMachine() Machine {
	m := machineAt("/proc/1/root", "/sys")
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return m
}

// Log writes one line about the machine, and one for each thing that will not
// work as on others.
func (m Machine) Log(log *slog.Logger) {
	log.Info("this machine", "kernel", m.Kernel, "os", m.OS, "cgroups", m.Cgroups,
		"selinux", m.SELinux, "readOnlyRoot", m.ReadOnlyRoot)
	if kernelOlder(m.Kernel, oldestMajor, oldestMinor) {
		log.Warn("this kernel is older than what Quarry is made for: thick images may "+
			"give room back "+
			"that others are then promised",
			"kernel", m.Kernel, "oldest", fmt.Sprintf("%d.%d", oldestMajor, oldestMinor))
	}
}

// machineAt reads what a machine's files say, below its root directory and its
// sysfs.
func machineAt(root, sysfs string) Machine {
	m := Machine{
		OS:      prettyName(filepath.Join(root, "etc/os-release")),
		Cgroups: "v1",
		SELinux: "off",
	}
	if m.OS == "" {
		m.OS = prettyName(filepath.Join(root, "usr/lib/os-release"))
	}

	// Only the second version has the file at its root.
	if _, err := os.Stat(filepath.Join(sysfs, "fs/cgroup/cgroup.controllers")); err == nil {
		m.Cgroups = "v2"
	}

	if text, err := os.ReadFile(filepath.Join(sysfs, "fs/selinux/enforce")); err == nil {
		m.SELinux = "permissive"
		if strings.TrimSpace(string(text)) == "1" {
			m.SELinux = "enforcing"
		}
	}

	var st unix.Statfs_t
	if unix.Statfs(root, &st) == nil {
		m.ReadOnlyRoot = st.Flags&unix.ST_RDONLY != 0
	}
	return m
}

// prettyName is PRETTY_NAME of a file of os-release(5).
func prettyName(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, is := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); is {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

// kernelOlder reports whether a kernel's release is before a version. One that
// cannot be read is not.
func kernelOlder(release string, major, minor int) bool {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return false
	}
	minorText := parts[1]
	if end := strings.IndexFunc(minorText, func(r rune) bool {
		return r < '0' || r > '9'
	}); end >= 0 {
		minorText = minorText[:end] // 4-rc1
	}
	have, err1 := strconv.Atoi(parts[0])
	sub, err2 := strconv.Atoi(minorText)
	return err1 == nil && err2 == nil && (have < major || have == major && sub < minor)
}

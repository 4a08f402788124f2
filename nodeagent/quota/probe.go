package quota

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Support says whether a filesystem enforces project quotas.
type Support struct {
	Filesystem string // "ext4", "xfs", or "" for all others
	Project    bool   // limits on projects are in force
	Reason     string // why not, and what would make it so; empty if Project
}

// probeLimits are odd on purpose: nobody else sets them.
var probeLimits = Limits{Bytes: 12_345 * 4096, Inodes: 54_321}

// probing keeps two probes of this process from clearing each other's limit.
var probing sync.Mutex

// Probe finds out whether project quotas are in force on the filesystem dir is
// on, by asking for its quota state and then by setting a limit on ProbeID,
// reading it back and clearing it. What a crash left of an earlier probe is
// cleared by the next. Accounting without enforcement (ext4 with the quota
// feature and no prjquota mount option, xfs with pqnoenforce) is not support.
//
// An error means that the question could not be answered, never "no".
func Probe(dir *os.File) (Support, error) {
	st, err := statfs(dir)
	if err != nil {
		return Support{}, err
	}
	var s Support
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		s.Filesystem = "ext4"
	case unix.XFS_SUPER_MAGIC:
		s.Filesystem = "xfs"
	default:
		s.Reason = "project quotas are for ext4 and xfs"
		return s, nil
	}
	s.Reason, err = off(dir, s.Filesystem)
	if err != nil || s.Reason != "" {
		return s, err
	}

	probing.Lock()
	defer probing.Unlock()
	err = SetLimits(dir, ProbeID, probeLimits)
	if clearErr := Clear(dir, ProbeID); clearErr != nil {
		return s, fmt.Errorf("probe: %w", clearErr)
	}
	var notInForce *ErrNotInForce
	switch {
	case errors.As(err, &notInForce):
		s.Reason = err.Error()
	case err != nil:
		return s, fmt.Errorf("probe: %w", err)
	default:
		s.Project = true
	}
	return s, nil
}

// Look is Probe without trying: it believes the filesystem's own state and
// changes nothing.
func Look(dir *os.File) (Support, error) {
	st, err := statfs(dir)
	if err != nil {
		return Support{}, err
	}
	s := Support{Reason: "project quotas are for ext4 and xfs"}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		s.Filesystem = "ext4"
	case unix.XFS_SUPER_MAGIC:
		s.Filesystem = "xfs"
	default:
		return s, nil
	}
	s.Reason, err = off(dir, s.Filesystem)
	s.Project = err == nil && s.Reason == ""
	return s, err
}

// remedy is what an administrator does to have project quotas.
var remedy = map[string]string{
	"ext4": "`tune2fs -O project,quota -Q prjquota` on the unmounted device, and the mount " +
		"option prjquota",
	"xfs": "the mount option prjquota, at the first mount of the device (a remount does not " +
		"switch it on)",
}

// off returns why the filesystem's own state says project quotas are not in
// force, or "" if it says they are.
func off(dir *os.File, filesystem string) (string, error) {
	state := quotaState{Version: stateVersion}
	err := quotactl(dir, qXGetState, 0, unsafe.Pointer(&state))
	switch {
	// ENOSYS is the answer of a kernel without quotas or before 5.14, and of
	// any kernel for a filesystem on which no quota of any kind is on.
	case errors.Is(err, unix.ENOSYS) && !HasQuotactlFD():
		return "the kernel has no quotactl_fd(2): it needs Linux 5.14 and CONFIG_QUOTACTL", nil
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return "project quota is off: it needs " + remedy[filesystem], nil
	case err != nil:
		return "", fmt.Errorf("get quota state: %w", err)
	case state.Flags&stateAccounting == 0:
		return "project quota is off: it needs " + remedy[filesystem], nil
	case state.Flags&stateEnforced == 0:
		return "project quota is accounted and not enforced: it needs " + remedy[filesystem], nil
	}
	return "", nil
}

// HasQuotactlFD reports whether the kernel has quotactl_fd(2): Linux 5.14 with
// CONFIG_QUOTACTL. It tells the system call from its absence: with a descriptor
// that cannot be open, an existing call answers EBADF.
func HasQuotactlFD() bool {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, ^uintptr(0),
		qXGetState<<8|prjQuota, 0, 0, 0, 0)
	return errno != unix.ENOSYS
}

package loop

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// filesystemNumbers returns every st_dev that files on the filesystem in device
// d have. It is the device's own number, except on btrfs, where every subvolume
// has an anonymous number of its own.
func filesystemNumbers(d Device) []uint64 {
	numbers := []uint64{d.Number}
	mounted, err := filepath.Glob("/sys/fs/btrfs/*/devices/" + filepath.Base(d.Path))
	if err != nil || len(mounted) == 0 {
		return numbers // not btrfs, or not in use: then nothing can stand on it
	}
	mount, err := openFilesystem("btrfs", d.Path)
	if err != nil {
		return numbers // gone since: the next look finds its device gone too
	}
	defer mount.Close()
	seen := map[uint64]bool{}
	// A link in /proc to the descriptor is followed only with something behind
	// it, hence the dot.
	root := fmt.Sprintf("/proc/self/fd/%d/.", mount.Fd())
	filepath.WalkDir(root, func(_ string, entry fs.DirEntry,
		err error) error { //nolint:errcheck // what cannot be read is skipped
		if err != nil || !entry.IsDir() {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		if number := info.Sys().(*syscall.Stat_t).Dev; !seen[number] {
			seen[number] = true
			numbers = append(numbers, number)
		}
		return nil
	})
	return numbers
}

// openFilesystem opens the root of the filesystem on a device without a mount
// point, so that there is nothing to undo after a crash: the mount is gone with
// the descriptor (fsmount(2), Linux 5.2).
func openFilesystem(kind, device string) (*os.File, error) {
	context, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigSetString(context, "source", device); err != nil {
		return nil, fmt.Errorf("fsconfig source %s: %w", device, err)
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("open the %s on %s: %w", kind, device, err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", device, err)
	}
	return os.NewFile(uintptr(mount), device), nil
}

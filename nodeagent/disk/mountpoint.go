package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/mount"
)

// isMountpoint reports whether the pool lies on another filesystem than its
// parent directory. The parent is looked at as the machine's first process sees
// it: inside a container every hostPath is a mount point, also one on the root
// disk.
func isMountpoint(path string, dir *os.File) (bool, error) {
	is, err := isMountpointIn("/proc/1/root", path, dir)
	if err != nil {
		return false, fmt.Errorf("look at the directory above (the agent needs hostPID): %w", err)
	}
	return is, nil
}

// isMountpointIn is isMountpoint as it is seen below another root directory.
func isMountpointIn(root, path string, dir *os.File) (bool, error) {
	up, err := os.Open(filepath.Join(root, filepath.Dir(path)))
	if err != nil {
		return false, err
	}
	defer up.Close()
	// Not by st_dev: each subvolume of a btrfs has its own.
	here, err := FilesystemKey(dir)
	if err != nil {
		return false, err
	}
	parent, err := FilesystemKey(up)
	return here != parent, err
}

// FilesystemKey is the same for all directories of one filesystem, btrfs
// subvolumes included.
func FilesystemKey(dir *os.File) (string, error) {
	devs, err := mount.DevicesOf(dir)
	if err != nil {
		return "", err
	}
	texts := make([]string, len(devs))
	for i, d := range devs {
		texts[i] = d.String()
	}
	return strings.Join(texts, ","), nil
}

// ReserveOf is what of the pool's filesystem is never promised, and why.
// kubelet evicts pods and removes images when less than 10% or 15% of its own
// filesystem is free, so a pool beside it leaves more where nobody said how
// much. kubeletDir may be empty.
func ReserveOf(cfg *config.Pool, r *Root, kubeletDir string) (reserve config.Reserve, why string) {
	if !cfg.Reserve.IsDefault() {
		return cfg.Reserve, "configured"
	}
	own, err := isMountpoint(cfg.Path, r.File())
	if err != nil { // the machine's first process cannot be asked: what this one sees
		own, err = isMountpointIn("/", cfg.Path, r.File())
	}
	if err == nil && !own {
		return config.SharedReserve(),
			"the pool's directory is no mount point: the filesystem is the system's too"
	}

	if kubeletDir != "" && sharedWithKubelet(hostRoots, kubeletDir, r.File()) {
		return config.SharedReserve(), "kubelet's directory is on the same filesystem"
	}
	return cfg.Reserve, "the pool has a filesystem of its own"
}

// hostRoots are where the machine's directories are looked for: as its first
// process sees them, for a container has kubelet's directory only where it has
// to publish there, and as this process does.
var hostRoots = []string{"/proc/1/root", "/"}

// sharedWithKubelet reports whether the pool's directory is on the filesystem of
// kubelet's. Where that cannot be found it is not.
func sharedWithKubelet(roots []string, kubeletDir string, pool *os.File) bool {
	ours, err := FilesystemKey(pool)
	if err != nil {
		return false
	}
	for _, root := range roots {
		kubelet, err := os.Open(filepath.Join(root, kubeletDir))
		if err != nil {
			continue
		}
		theirs, err := FilesystemKey(kubelet)
		kubelet.Close()
		if err == nil && theirs == ours {
			return true
		}
	}
	return false
}

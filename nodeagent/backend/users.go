package backend

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// CheckUnused returns who uses the volume, in any mount namespace of the
// machine, as an *InUseError, nil where nobody does. What this process itself
// holds does not count. dir is the volume's directory. Without holders, nobody
// is looked for who has the device of a mounted filesystem open: that takes a
// look at all open files of the machine, and who takes the volume down next is
// told by the kernel.
func (b *Backends) CheckUnused(rec *record.Volume, dir *beneath.Dir, holders bool) error {
	table, err := b.Scans.Scan()
	if err != nil {
		return fmt.Errorf("look for mounts of volume %s: %w", rec.ID, err)
	}
	if !table.HostPID {
		return fmt.Errorf("volume %s: it cannot be proven that nobody uses it: the machine's "+
			"processes are not visible (the agent needs hostPID)", rec.ID)
	}
	if err := unproven(rec, table); err != nil {
		return err
	}

	place, err := mount.PlaceOf(dir.File())
	if err != nil {
		return err
	}

	in := &InUseError{ID: rec.ID, Reason: v1alpha1.ReasonMounted}
	for _, u := range table.Under(place) {
		// A container whose hostPath is the whole pool sees a mount of the
		// pool, which is above the volume, not of it.
		in.By = append(in.By, u.String())
	}

	devices, err := DevicesOf(dir)
	if err != nil {
		return err
	}

	var copies []string // named last: who has the data itself is whom people look for
	for _, dev := range devices {
		for _, u := range table.OfDevice(dev.Dev) {
			if !ownMount(u, rec.ID) {
				in.By = append(in.By, u.String())
			} else if isPrivateCopy(u, table) {
				copies = append(copies, u.String())
			}
		}

		// A node that was given to a container leads to whatever has the number
		// next.
		for _, u := range table.OfNode(dev.Dev, path.Base(dev.Path)) {
			in.By = append(in.By, u.String())
		}

		mounted := len(table.OfDevice(dev.Dev)) > 0
		if len(in.By)+len(copies) > 0 || mounted && !holders {
			continue
		}

		holding, err := holdersOf(dev, table)
		if err != nil {
			return err
		}

		for _, h := range holding {
			// While it is mounted, its filesystem claims the device: that is
			// our own mount, which was looked at above.
			if h.Kind == loop.KindMount || h.Kind == loop.KindBtrfs ||
				mounted && h.Kind == loop.KindUnknown {
				continue
			}

			in.Reason = v1alpha1.ReasonDeviceHeld
			in.By = append(in.By, h.String())
		}
	}

	in.By = append(in.By, copies...)
	if len(in.By) > 0 {
		return in
	}

	return nil
}

// unproven says why "nobody uses it" cannot be proven, if there are mounts that
// could not be looked at. For a filesystem in an image the kernel's own refusal
// is enough: it neither unmounts nor detaches what is used from anywhere.
func unproven(rec *record.Volume, table *mount.Table) error {
	if rec.Backend == record.BackendLoop && rec.VolumeMode != record.ModeBlock {
		return nil
	}

	switch {
	case len(table.Unreadable) > 0:
		return fmt.Errorf("volume %s: it cannot be proven that nobody uses it: the mounts of pid "+
			"%d cannot be read (the agent needs CAP_SYS_PTRACE)", rec.ID, table.Unreadable[0])
	case len(table.Hidden) > 0:
		return fmt.Errorf("volume %s: it cannot be proven that nobody uses it: the mount "+
			"namespace %d, which no process is in, cannot be looked into", rec.ID, table.Hidden[0])
	}

	return nil
}

// isPrivateCopy reports whether a mount of the whole filesystem in another
// namespace is one that our unmounting does not reach: a container that was
// started with the host's mounts and without their propagation has it until it
// ends. It keeps the device.
func isPrivateCopy(u mount.Use, table *mount.Table) bool {
	return u.Namespace != table.Namespace && u.Propagation == ""
}

// Programs that list devices (lsblk, udev) open each for a moment, and losetup
// holds one that another was faster to take for 200 ms, until it tries the
// next; such a holder is looked at again before it counts.
const (
	glances      = 25
	betweenLooks = 20 * time.Millisecond
)

// holdersOf returns the holders of a device that are there to stay.
func holdersOf(dev loop.Device, table *mount.Table) ([]loop.Holder, error) {
	for look := 1; ; look++ {
		holders, err := loop.Holders(dev, loop.HolderOptions{Table: table})
		lasting := slices.ContainsFunc(holders, func(h loop.Holder) bool {
			return h.Kind != loop.KindDescriptor
		})
		if err != nil || len(holders) == 0 || lasting || look == glances {
			return holders, err
		}

		time.Sleep(betweenLooks)
	}
}

// ownMount reports whether a mount is the agent's own of a volume's filesystem,
// or a copy of that which mount propagation put into another namespace, and not
// a pod's: it is of the whole filesystem, at a path that ends in <id>/mount.
// Pods get data below it.
func ownMount(u mount.Use, id string) bool {
	return strings.HasSuffix(u.Mountpoint, path.Join("/", id, record.MountDir)) && (u.Root == "/" ||
		u.FSType == "btrfs" && !strings.HasSuffix(u.Root, "/"+record.DataDir))
}

// MountScans lets all who need the machine's mounts at the same time share one
// scan: reading every mount namespace takes some milliseconds, and a hundred
// deletions need not do it a hundred times. A caller is never served by a scan
// that began before its call.
type MountScans struct {
	mu      sync.Mutex
	next    *mountScan // not begun yet
	running sync.Mutex
}

type mountScan struct {
	done  chan struct{}
	table *mount.Table
	err   error
}

func (m *MountScans) Scan() (*mount.Table, error) {
	m.mu.Lock()
	scan := m.next
	if scan != nil {
		m.mu.Unlock()
		<-scan.done
		return scan.table, scan.err
	}
	scan = &mountScan{done: make(chan struct{})}
	m.next = scan
	m.mu.Unlock()

	m.running.Lock()
	m.mu.Lock()
	m.next = nil // from here on it has begun
	m.mu.Unlock()

	scan.table, scan.err = mount.Scan()
	m.running.Unlock()
	close(scan.done)

	return scan.table, scan.err
}

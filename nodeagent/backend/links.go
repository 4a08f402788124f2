package backend

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A link in the device directory is the path of a Block volume, and a path that
// leads to another volume's device would give one tenant the data of another.
// So a link exists only while this process keeps its device open: until then
// the device's number cannot come to mean another image, whatever is done to
// the device.
//
// Between two agents no process keeps it open: the device can be taken away,
// and its number be given out. So a new process first opens what the links lead
// to, and drops those that lead to anything but their volume's device.

// links are the links that exist, by the device they lead to.
type links struct {
	once sync.Once
	mu   sync.Mutex
	ids  map[string]string
	// found are those that were there, until it is known whose they are.
	found map[string]string
}

// TakeOverLinks opens the devices that an earlier process's links lead to, and
// drops the links that lead to none of a volume's. It is called before this
// process attaches anything.
func (b *Backends) TakeOverLinks(ctx context.Context) {
	b.links.once.Do(func() {
		entries, err := os.ReadDir(b.DeviceDir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			b.Log.ErrorContext(ctx, "look for links to devices", "error", err)
		}

		for _, e := range entries {
			link := filepath.Join(b.DeviceDir, e.Name())
			to, err := os.Readlink(link)
			if err == nil && record.CheckID(e.Name()) == nil {
				if err = pinLinked(e.Name(), to); err == nil {
					b.noteLink(e.Name(), to)
					b.noteFound(e.Name(), to)
					continue
				}
			}

			if e.Type()&os.ModeSymlink == 0 {
				continue // nobody made that for a volume
			}

			b.Log.WarnContext(ctx, "a link does not lead to its volume's device any more and is "+
				"taken away", "link", link, "to", to, "error", err)
			if err := os.Remove(link); err != nil {
				b.Log.ErrorContext(ctx, "take a link away", "error", err)
			}
		}
	})
}

func (b *Backends) noteFound(id, to string) {
	b.links.mu.Lock()
	defer b.links.mu.Unlock()
	if b.links.found == nil {
		b.links.found = map[string]string{}
	}
	b.links.found[id] = to
}

// errNoLoop says that a link leads to something that cannot be a volume's
// device.
var errNoLoop = errors.New("it is no loop device")

// pinLinked keeps the device that a volume's link leads to open if it is over
// that volume's image, by what the kernel says of it: the name that we gave it,
// and where its image lies. That the image is the volume's own is proven when
// it is brought up.
func pinLinked(id, to string) error {
	number, ok := loop.NumberOf(to)
	if !ok {
		return errNoLoop
	}

	name := deviceName(id)
	return loop.PinIf(number, func(d loop.Device) bool {
		return d.Name != "" && strings.HasPrefix(name, d.Name) &&
			strings.HasSuffix(d.BackingPath, "/"+id+"/"+record.ImageFile)
	})
}

// deviceName is what losetup shows of a volume's device. The kernel cuts it.
func deviceName(id string) string { return "quarry:" + id }

func (b *Backends) noteLink(id, to string) {
	b.links.mu.Lock()
	defer b.links.mu.Unlock()
	if b.links.ids == nil {
		b.links.ids = map[string]string{}
	}
	b.links.ids[to] = id
}

func (b *Backends) forgetLink(id string) {
	b.links.mu.Lock()
	defer b.links.mu.Unlock()
	for to, of := range b.links.ids {
		if of == id {
			delete(b.links.ids, to)
		}
	}
}

// dropLinkTo removes the link that leads to a device which is about to get an
// image. There is none as long as only this process makes links and lets go of
// devices.
func (b *Backends) dropLinkTo(device string) error {
	b.links.mu.Lock()
	id, there := b.links.ids[device]
	b.links.mu.Unlock()

	if !there {
		return nil
	}

	b.Log.Warn("a link led to a device that has no image, and is taken away",
		"volume", id, "device", device)
	return b.UnlinkDevice(id)
}

// linkDevice makes the link that a Block volume's path is, to a device that is
// kept open. It is made after the device was verified, and replaced in one
// step.
func (b *Backends) linkDevice(id string, dev loop.Device) error {
	if err := os.MkdirAll(b.DeviceDir, 0o755); err != nil {
		return err
	}

	link := filepath.Join(b.DeviceDir, id)
	if to, err := os.Readlink(link); err == nil && to == dev.Path {
		b.noteLink(id, dev.Path)
		return nil
	}
	if err := b.Fault("link device"); err != nil {
		return err
	}

	tmp := link + ".new" // no id has a dot
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(dev.Path, tmp); err != nil {
		return err
	}
	if err := b.Fault("rename link"); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return err
	}

	b.forgetLink(id)
	b.noteLink(id, dev.Path)
	return nil
}

func (b *Backends) UnlinkDevice(id string) error {
	if err := b.Fault("unlink device"); err != nil {
		return err
	}

	link := filepath.Join(b.DeviceDir, id)

	// The first if linkDevice was ended in between.
	for _, name := range []string{link + ".new", link} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}

	b.forgetLink(id)
	return nil
}

// LeaveLinks lets go of devices whose volumes are not ours, by id: another
// process of this machine has other pools, and keeps open what its links lead
// to. It is for those links alone that were there before this process, and a
// second call does nothing.
func (b *Backends) LeaveLinks(isOurs func(id string) bool) {
	b.links.mu.Lock()
	found := b.links.found
	b.links.found = nil
	b.links.mu.Unlock()
	for id, to := range found {
		if number, ok := loop.NumberOf(to); ok && !isOurs(id) {
			b.forgetLink(id)
			loop.Unpin(number)
		}
	}
}

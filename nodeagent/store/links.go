package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/quarry-storage/quarry/nodeagent/disk"
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
	// found are the links that were there at the start, until it is known whose
	// they are.
	found map[string]string
}

// takeOverLinks opens the devices that an earlier process's links lead to, and
// drops the links that lead to none of a volume's. It is called before this
// process attaches anything.
func (s *Store) takeOverLinks(ctx context.Context) {
	s.links.once.Do(func() {
		entries, err := os.ReadDir(s.opts.DeviceDir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.log.ErrorContext(ctx, "look for links to devices", "error", err)
		}

		for _, e := range entries {
			link := filepath.Join(s.opts.DeviceDir, e.Name())
			to, err := os.Readlink(link)
			if err == nil && record.CheckID(e.Name()) == nil {
				if err = pinLinked(e.Name(), to); err == nil {
					s.noteLink(e.Name(), to)
					s.noteFound(e.Name(), to)
					continue
				}
			}

			if e.Type()&os.ModeSymlink == 0 {
				continue // not a link to a volume's device
			}

			s.log.WarnContext(ctx, "a link does not lead to its volume's device any more and is "+
				"taken away", "link", link, "to", to, "error", err)
			if err := os.Remove(link); err != nil {
				s.log.ErrorContext(ctx, "take a link away", "error", err)
			}
		}
	})
}

func (s *Store) noteFound(id, to string) {
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	if s.links.found == nil {
		s.links.found = map[string]string{}
	}
	s.links.found[id] = to
}

// leaveLinksOfOthers lets go of devices whose volumes are in no pool of ours,
// once all of ours were looked at: another process of this machine has other
// pools, and keeps open what its links lead to.
func (s *Store) leaveLinksOfOthers() {
	for _, p := range s.pools {
		p.mu.Lock()
		offline := p.offline
		p.mu.Unlock()

		if offline != nil && offline.Reason != disk.OfflineInUse {
			return
		}
	}

	s.links.mu.Lock()
	found := s.links.found
	s.links.found = nil
	s.links.mu.Unlock()

	for id, to := range found {
		if number, ok := loop.NumberOf(to); ok && s.lookup(id) == nil && !s.isUnread(id) {
			s.forgetLink(id)
			loop.Unpin(number)
		}
	}
}

// isUnread reports whether a pool of ours has something under that id that
// could not be read.
func (s *Store) isUnread(id string) bool {
	return slices.ContainsFunc(s.pools, func(p *pool) bool { return s.isBroken(p, id) })
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

func (s *Store) noteLink(id, to string) {
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	if s.links.ids == nil {
		s.links.ids = map[string]string{}
	}
	s.links.ids[to] = id
}

func (s *Store) forgetLink(id string) {
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	for to, of := range s.links.ids {
		if of == id {
			delete(s.links.ids, to)
		}
	}
}

// dropLinkTo removes the link that leads to a device which is about to get an
// image. There is none as long as only this process makes links and lets go of
// devices.
func (s *Store) dropLinkTo(device string) error {
	s.links.mu.Lock()
	id, there := s.links.ids[device]
	s.links.mu.Unlock()

	if !there {
		return nil
	}

	s.log.Warn("a link led to a device that has no image, and is taken away",
		"volume", id, "device", device)
	return s.unlinkDevice(id)
}

// linkDevice makes the link that a Block volume's path is, to a device that is
// kept open. It is made after the device was verified, and replaced in one
// step.
func (s *Store) linkDevice(id string, dev loop.Device) error {
	if err := os.MkdirAll(s.opts.DeviceDir, 0o755); err != nil {
		return err
	}

	link := filepath.Join(s.opts.DeviceDir, id)
	if to, err := os.Readlink(link); err == nil && to == dev.Path {
		s.noteLink(id, dev.Path)
		return nil
	}
	if err := s.fault("link device"); err != nil {
		return err
	}

	tmp := link + ".new" // no id has a dot
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(dev.Path, tmp); err != nil {
		return err
	}
	if err := s.fault("rename link"); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return err
	}

	s.forgetLink(id)
	s.noteLink(id, dev.Path)
	return nil
}

func (s *Store) unlinkDevice(id string) error {
	if err := s.fault("unlink device"); err != nil {
		return err
	}

	link := filepath.Join(s.opts.DeviceDir, id)

	// The first exists if linkDevice was interrupted.
	for _, name := range []string{link + ".new", link} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}

	s.forgetLink(id)
	return nil
}

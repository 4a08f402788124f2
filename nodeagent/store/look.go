package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// LookEvery is how often the watcher looks at all volumes without being told of
// a change. At a change of the node's mounts it looks at the mounts at once.
const LookEvery = 5 * time.Second

const (
	// limitsEvery is how many looks go by between two at the limits of
	// directories: one a minute. A limit is lifted by an administrator or with
	// the pool's mount, and a look asks the filesystem once for each volume.
	limitsEvery = 12
	// repairsAtOnce is how many volumes of one pool the watcher brings up again
	// at the same time.
	repairsAtOnce = 4
	// A volume that could not be brought up is tried again after ever longer
	// times. At a change of mounts, which may be its last user's going, it is
	// tried sooner, in an eighth of that: the trial may be what changes a
	// mount.
	tryAgainFirst, tryAgainLast = 5 * time.Second, 2 * time.Minute
	tryAgainSoonest             = time.Second
	// What a check gave up on is left to a person, and looked at now and then
	// in case one has mended it.
	tryDamagedAgain = 10 * time.Minute
)

// Watch looks at every volume that is up, at each change of the node's mounts
// and every [LookEvery], until ctx ends, and brings up again those that are not
// as they were brought up: the mount was taken away, the device is over another
// image or marked to go, or the kernel made the filesystem read-only or shut it
// down. A volume that cannot be brought up is unavailable, with the reason. It
// is called once, after the first Refresh.
func (s *Store) Watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.watcher.running.Wait()
	defer cancel()

	changed, err := mount.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch the node's mounts: %w", err)
	}

	ticker := time.NewTicker(LookEvery)
	defer ticker.Stop()

	again := s.watcher.wakeUp()
	for {
		all := true
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-changed:
			if !open {
				return nil
			}
			all = false
		case <-again:
		case <-ticker.C:
		}

		if err := s.lookAtAll(ctx, all); err != nil {
			s.log.WarnContext(ctx, "look at the volumes", "error", err)
		}
	}
}

// Look looks at every volume once, and returns when all repairs that follow
// from it are done.
func (s *Store) Look(ctx context.Context) error {
	err := s.lookAtAll(ctx, true)
	s.watcher.running.Wait()
	return err
}

// lookAtAll is one look. With all it looks at devices, links and filesystems
// too; without, only at what is mounted.
func (s *Store) lookAtAll(ctx context.Context, all bool) error {
	s.watcher.looking.Lock()
	defer s.watcher.looking.Unlock()

	images, directories := s.inSight()
	wrong := map[*volume]string{}
	var errs []error
	table, err := lookAtMounts()
	errs = append(errs, err)

	if err == nil {
		for _, i := range images {
			if why := table.wrong(&i); why != "" {
				wrong[i.v] = why
			}
		}
	}

	if all {
		errs = append(errs, s.lookAtDevices(ctx, images, wrong))
		s.lookAtFilesystems(ctx, images, wrong)
		if s.watcher.count%limitsEvery == 0 {
			s.lookAtLimits(ctx, directories)
		}

		s.watcher.count++
	}

	s.setRight(ctx, images, wrong, !all)
	return errors.Join(errs...)
}

// inSight returns the volumes of the pools that are online, in two groups by
// what there is to look at. Those that could not be brought up are with the
// images. Left out are volumes that are still being brought up for the first
// time, and those whose adoption is not finished.
func (s *Store) inSight() (images, directories []seen) {
	s.mu.Lock()
	defer s.mu.Unlock()

	images = make([]seen, 0, len(s.volumes))
	online := map[*pool]bool{}
	for _, p := range s.pools {
		online[p] = p.online()
	}

	for _, v := range s.volumes {
		if !online[v.pool] || v.rec.Adopting != "" || errors.Is(v.unavailable, errNotUp) {
			continue
		}

		i := seen{v: v, rec: v.rec, up: v.up, unavailable: v.unavailable}
		if backend.HasDevice(&v.rec) || v.unavailable != nil {
			images = append(images, i)
		} else if backend.IsHeldByQuota(&v.rec) {
			directories = append(directories, i)
		}
	}

	return images, directories
}

// mountTable is what a look sees of our own mount namespace.
type mountTable struct {
	byID map[int]*mount.Info
	// over are the mount points with something mounted on them, by the mount
	// that they are in.
	over map[mountedOn]bool
}

type mountedOn struct {
	id   int
	path string
}

func lookAtMounts() (*mountTable, error) {
	infos, err := mount.Own()
	if err != nil {
		return nil, err
	}

	t := &mountTable{byID: make(map[int]*mount.Info, len(infos)), over: make(map[mountedOn]bool,
		len(infos))}
	for i := range infos {
		t.byID[infos[i].ID] = &infos[i]
		t.over[mountedOn{infos[i].Parent, infos[i].Mountpoint}] = true
	}

	return t, nil
}

// wrong says how the mount of a volume differs from what was proven; empty: it
// does not.
func (t *mountTable) wrong(i *seen) string {
	if i.up == nil || i.up.Mounted == nil {
		return ""
	}

	then := i.up.Mounted
	now := t.byID[then.ID]
	switch {
	case now == nil || now.Dev != then.Dev || now.Root != then.Root || now.Parent != then.Parent:
		return "its filesystem is not mounted any more"
	case path.Base(path.Dir(now.Mountpoint)) != i.rec.ID:
		return "its filesystem is mounted elsewhere"
	case t.over[mountedOn{now.ID, now.Mountpoint}]:
		return "something is mounted over its filesystem"
	case t.over[mountedOn{now.Parent, path.Dir(now.Mountpoint)}]:
		return "something is mounted over its directory"
	}

	if sick := backend.Sickness(&i.rec, now); sick != nil {
		return sick.Detail
	}

	return ""
}

// lookAtDevices compares what the volumes' devices are over, takes marks off,
// and looks at the links of Block volumes.
func (s *Store) lookAtDevices(ctx context.Context, images []seen, wrong map[*volume]string) error {
	table, err := loop.Look()
	if err != nil {
		return err
	}

	var errs []error
	for backing, devices := range table {
		for _, d := range devices {
			if d.Autoclear && loop.IsPinned(d.Number) {
				s.log.WarnContext(ctx,
					"somebody detached a volume's device, which is in use and stays", "device",
					fmt.Sprintf("/dev/loop%d", d.Number), "image", d.Path)
				errs = append(errs, loop.TakeBack(loop.Device{Path: fmt.Sprintf("/dev/loop%d",
					d.Number), Number: d.Number, Backing: backing}))
			}
		}
	}

	for _, i := range images {
		if i.up == nil || wrong[i.v] != "" {
			continue
		}

		devices := table[i.up.Device.Backing]
		switch {
		case len(devices) != 1 || devices[0].Number != i.up.Device.Number:
			wrong[i.v] = fmt.Sprintf("%d loop devices are over its image, and %s is not the one",
				len(devices), i.up.Device.Path)
		case !strings.HasSuffix(devices[0].Path, "/"+i.rec.ID+"/"+record.ImageFile):
			wrong[i.v] = fmt.Sprintf("its device is over %s", devices[0].Path)
		case i.rec.VolumeMode == record.ModeBlock:
			if to, err := os.Readlink(filepath.Join(s.opts.DeviceDir, i.rec.ID)); err != nil ||
				to != i.up.Device.Path {
				wrong[i.v] = fmt.Sprintf("its link leads to %q, not to %s", to, i.up.Device.Path)
			}
		}
	}

	return errors.Join(errs...)
}

// lookAtLimits looks whether the limits of directory volumes are in force, and
// has those put back that are not.
func (s *Store) lookAtLimits(ctx context.Context, directories []seen) {
	byPool := map[*pool][]seen{}
	for _, d := range directories {
		byPool[d.v.pool] = append(byPool[d.v.pool], d)
	}

	for p, volumes := range byPool {
		var lost []string
		err := s.ask(p, func(r *disk.Root) error {
			for _, i := range volumes {
				if !backend.IsInForce(r, &i.rec) {
					lost = append(lost, i.rec.ID)
				}
			}

			return nil
		})
		if err != nil {
			continue // the pool is offline, or does not answer, as its own state says
		}

		for _, id := range lost {
			if _, err := s.recheckSlice(ctx, id); err != nil {
				s.log.WarnContext(ctx, "the limit of a volume was not in force", "volume", id,
					"error", err)
			}
		}
	}
}

// setRight brings up, in the background, the volumes that are not as they
// should be, and tries again those that could not be brought up. soon means
// that the node's mounts changed, and that what kept a volume from being mended
// may be gone.
func (s *Store) setRight(ctx context.Context, images []seen, wrong map[*volume]string, soon bool) {
	s.watcher.mu.Lock()
	defer s.watcher.mu.Unlock()

	w := &s.watcher
	if w.repairs == nil {
		w.repairs, w.slots = map[string]*repair{}, map[*pool]chan struct{}{}
	}

	known := make(map[string]bool, len(w.repairs))
	for _, i := range images {
		why := wrong[i.v]
		r := w.repairs[i.rec.ID]
		known[i.rec.ID] = r != nil
		if why == "" && i.unavailable == nil {
			continue
		}
		if r == nil {
			r = &repair{}
			w.repairs[i.rec.ID], known[i.rec.ID] = r, true
		}

		due := !time.Now().Before(r.next) ||
			soon && time.Since(r.began) >= max(tryAgainSoonest, r.wait/8)
		if r.running || !due {
			continue
		}

		r.running, r.began = true, time.Now()
		slots := w.slots[i.v.pool]
		if slots == nil {
			slots = make(chan struct{}, repairsAtOnce)
			w.slots[i.v.pool] = slots
		}

		w.running.Go(func() { s.bringBack(ctx, i.v, why, r, slots) })
	}

	maps.DeleteFunc(w.repairs, func(id string, r *repair) bool { return !known[id] && !r.running })
}

// bringBack brings one volume up again. What it finds stays with the volume.
func (s *Store) bringBack(ctx context.Context, v *volume, why string, r *repair,
	slots chan struct{}) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
	}

	err := s.activateAgain(ctx, v, why)
	s.watcher.mu.Lock()
	defer s.watcher.mu.Unlock()

	r.running = false
	var damaged *filesystem.DamagedError
	switch {
	case err == nil:
		delete(s.watcher.repairs, v.id)
	case errors.As(err, &damaged):
		r.next = time.Now().Add(tryDamagedAgain)
	default:
		r.wait = min(max(2*r.wait, tryAgainFirst), tryAgainLast)
		r.next = time.Now().Add(r.wait)
	}
}

func (s *Store) activateAgain(ctx context.Context, v *volume, why string) error {
	unlock, err := s.locks.Lock(ctx, v.id)
	if err != nil {
		return err
	}
	defer unlock()

	if s.lookup(v.id) != v {
		return nil // deleted meanwhile
	}

	before := s.unavailability(v)
	if why != "" && before == "" {
		s.log.WarnContext(ctx, "a volume did not stand as it was brought up", "volume", v.id,
			"because", why)
	}

	err = s.activateLocked(ctx, v)
	if err != nil && before != err.Error() {
		s.log.ErrorContext(ctx, "bring volume up again", "volume", v.id, "error", err)
	}

	return err
}

func (s *Store) unavailability(v *volume) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.unavailable == nil {
		return ""
	}
	return v.unavailable.Error()
}

// Unavailable counts the volumes that cannot be used, by the API's reason of
// the condition Ready.
func (s *Store) Unavailable() map[string]int {
	counts := map[string]int{}
	for _, v := range s.List() {
		if v.Unavailable != nil {
			reason, _ := Reason(v.Unavailable)
			counts[reason]++
		}
	}
	return counts
}

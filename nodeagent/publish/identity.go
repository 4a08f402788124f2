package publish

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// isPublished reports whether the target shows the volume already, as asked
// for. Anything else that is mounted there is an error, and is not touched.
func (p *Publisher) isPublished(ctx context.Context, v *store.Volume, t *target, source *os.File,
	want options) (bool, error) {
	there, err := t.mounted()
	if errors.Is(err, mount.ErrNotMountpoint) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}
	defer there.Close()

	otherwise := func(have string) error {
		return translate.Errorf(v1alpha1.ReasonPublishedOtherwise,
			"volume %s is published at %s already, %s", v.ID, t.path, have)
	}
	same, err := isSame(there, source)
	if err != nil {
		return false, translate.Errorf(v1alpha1.ReasonFailed, "compare the target: %w", err)
	}

	if !same {
		mine, err := p.isOf(ctx, v.ID, there)
		if err != nil {
			return false, err
		}
		if mine {
			return false, otherwise("as another device: read-only, or not")
		}

		return false, translate.Errorf(v1alpha1.ReasonTargetTaken,
			"something else than volume %s is mounted at %s", v.ID, t.path)
	}

	if v.VolumeMode == record.ModeBlock {
		return true, nil
	}

	have, err := mount.At(there)
	if err != nil {
		return false, translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}

	from, err := mount.Of(source)
	if err != nil {
		return false, translate.Errorf(v1alpha1.ReasonFailed, "look at the volume: %w", err)
	}

	for word, asked := range map[string]bool{"ro": want.readOnly, "noexec": want.noExec} {
		// What the volume's own mount has, every bind of it has.
		if is := slices.Contains(have.Options, word); is != (asked ||
			slices.Contains(from.Options, word)) {
			return false, otherwise("with mount options " + strings.Join(have.Options, ","))
		}
	}

	return true, nil
}

// publishedAt lists the paths, of this mount namespace, where the volume is
// seen; its own place is none of them.
func (p *Publisher) publishedAt(ctx context.Context, v *store.Volume) ([]string, error) {
	source, err := p.Store.Open(ctx, v.ID)
	if err != nil {
		return nil, translate.WithReason(err)
	}
	defer source.Close()

	paths, err := boundAt(source)
	if err != nil || v.VolumeMode != record.ModeBlock {
		return paths, err
	}

	readOnly, err := p.readOnlyDevices(ctx, v.ID)
	if err != nil {
		return nil, err
	}

	for _, ro := range readOnly {
		more, err := deviceBoundAt(ro)
		if err != nil {
			return nil, err
		}
		paths = append(paths, more...)
	}

	return paths, nil
}

// boundAt lists where a directory or device node is mounted, in this mount
// namespace.
func boundAt(f *os.File) ([]string, error) {
	place, err := mount.PlaceOf(f)
	if err != nil {
		return nil, translate.Errorf(v1alpha1.ReasonFailed, "find where %s is mounted: %w",
			f.Name(), err)
	}

	all, err := mount.MountedBelow("/")
	if err != nil {
		return nil, translate.Errorf(v1alpha1.ReasonFailed, "find where %s is mounted: %w",
			f.Name(), err)
	}

	var paths []string
	for _, m := range all {
		if m.Dev == place.Dev && m.Root == place.Path {
			paths = append(paths, m.Mountpoint)
		}
	}

	return paths, nil
}

func deviceBoundAt(dev loop.Device) ([]string, error) {
	f, err := os.OpenFile(dev.Path, unix.O_PATH, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, translate.Errorf(v1alpha1.ReasonFailed, "find where %s is mounted: %w",
			dev.Path, err)
	}
	defer f.Close()

	return boundAt(f)
}

// checkPublished returns nil when path shows the volume.
func (p *Publisher) checkPublished(ctx context.Context, v *store.Volume, source *os.File,
	path string) error {
	no := func(err error) error {
		return translate.Errorf(v1alpha1.ReasonNotPublished, "volume %s is not published at %s: %w",
			v.ID, path, err)
	}
	f, err := mount.Open(path)
	if err != nil {
		return no(err)
	}
	defer f.Close()

	if _, err := mount.At(f); err != nil {
		return no(err)
	}
	if same, err := isSame(f, source); err != nil || same {
		return err
	}
	if mine, err := p.isOf(ctx, v.ID, f); err != nil || mine && v.VolumeMode == record.ModeBlock {
		return err
	}

	return no(errors.New("something else is"))
}

// isOf reports whether f, the root of a mount, shows the volume id. Where it is
// not what can be opened now (its disk is gone, or is mounted anew; it was
// deleted), what the kernel remembers of the mount's origin decides.
func (p *Publisher) isOf(ctx context.Context, id string, f *os.File) (bool, error) {
	if v, err := p.Store.Get(id); err == nil {
		if source, err := p.Store.Open(ctx, id); err == nil {
			same, err := isSame(f, source)
			source.Close()
			if err != nil {
				return false, translate.Errorf(v1alpha1.ReasonFailed, "compare the target: %w", err)
			}
			if same {
				return true, nil
			}
			if v.VolumeMode == record.ModeBlock {
				if is, err := p.isReadOnlyOf(ctx, id, f); err != nil || is {
					return is, err
				}
			}
			// It may be the volume as it was: a pool can come back on another
			// device under a running pod.
		}
	}

	if record.CheckID(id) != nil {
		return false, nil
	}

	info, err := mount.At(f)
	if err != nil {
		return false, translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}

	return wasOf(info, id), nil
}

// isReadOnlyOf reports whether f is a node of one of the volume's read-only
// devices.
func (p *Publisher) isReadOnlyOf(ctx context.Context, id string, f *os.File) (bool, error) {
	number, err := mount.BlockDevice(f)
	if errors.Is(err, unix.ENOTBLK) {
		return false, nil
	}
	if err != nil {
		return false, translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}

	devices, err := p.readOnlyDevices(ctx, id)
	return slices.ContainsFunc(devices, func(d loop.Device) bool { return d.Dev == number }), err
}

// wasOf reads from a mount what it was made of: a directory <pool>/<id>/data, a
// filesystem on a loop device over <pool>/<id>/image, or the node of such a
// device. A deleted volume has <id>@<time> in the place of its id.
func wasOf(m mount.Info, id string) bool {
	if names(m.Root, id) && (strings.Contains(m.Root, "/"+record.DataDir)) {
		return true
	}

	device := ""
	switch {
	case strings.HasPrefix(m.Root, "/loop") && m.FSType == "devtmpfs":
		device = strings.TrimPrefix(m.Root, "/")
	case strings.HasPrefix(m.Source, "/dev/loop"):
		device = strings.TrimPrefix(m.Source, "/dev/")
	}

	for range 2 { // a read-only device is over another one
		if device == "" || strings.ContainsRune(device, '/') {
			return false
		}

		backing, err := os.ReadFile(filepath.Join("/sys/block", device, "loop/backing_file"))
		if err != nil {
			return false
		}

		path := strings.TrimSpace(string(backing))
		if names(path, id) {
			return true
		}

		device = strings.TrimPrefix(path, "/dev/")
	}

	return false
}

// names reports whether one element of a path is the id, or the id in the
// trash.
func names(path, id string) bool {
	return slices.ContainsFunc(strings.Split(path, "/"), func(element string) bool {
		return element == id || strings.HasPrefix(element, id+"@")
	})
}

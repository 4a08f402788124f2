package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// Publisher publishes the volumes of one store. Two operations on one volume at
// a time are not kept apart here; the front door does that. Errors have a
// reason (*translate.Error).
type Publisher struct{ Store *store.Store }

// Stage brings the volume up, proves that it is what its record says, and
// describes it. A second call confirms it.
func (p *Publisher) Stage(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	v, err := p.Store.Activate(ctx, id)
	if err != nil {
		return nil, translate.WithReason(err)
	}
	return translate.VolumeOnDisk(&v, p.Store.FilesystemOf(v.Pool)), nil
}

// Expand makes the volume at least that many bytes large and describes it.
func (p *Publisher) Expand(ctx context.Context, id string, bytes int64) (*v1alpha1.Volume, error) {
	v, err := p.Store.Grow(ctx, id, bytes)
	if _, full := errors.AsType[*disk.CapacityError](err); full {
		return nil, &translate.Error{Code: v1alpha1.ReasonResizeInfeasible, Err: err}
	}
	if err != nil {
		return nil, translate.WithReason(err)
	}
	return translate.VolumeOnDisk(&v, p.Store.FilesystemOf(v.Pool)), nil
}

// Publish makes the volume's data visible at target, which is made where it is
// missing: a directory, or for a Block volume a file over which the device node
// is bound. Its parent must be there. flags are words of mount(8); those of a
// filesystem must be what the volume is mounted with, or, where it is a
// directory of the pool's own filesystem, have no effect.
//
// The same again confirms it. With alone set, another publish of the volume
// elsewhere is an error.
func (p *Publisher) Publish(ctx context.Context, id, target string, flags []string,
	alone bool) (err error) {
	v, err := p.Store.Find(ctx, id)
	if err != nil {
		return translate.WithReason(err)
	}

	opts, err := optionsOf(&v, flags)
	if err != nil {
		return err
	}

	source, cleanup, err := p.source(ctx, &v, opts.readOnly)
	if err != nil {
		return err
	}
	defer func() {
		source.Close()
		if e := cleanup(ctx, err); e != nil {
			err = errors.Join(err, e)
		}
	}()

	t, err := openTarget(target)
	if err != nil {
		return err
	}
	defer t.Close()

	published, err := p.isPublished(ctx, &v, t, source, opts)
	if err != nil || published {
		return err
	}

	if alone {
		elsewhere, err := p.publishedAt(ctx, &v)
		if err != nil {
			return err
		}
		if len(elsewhere) > 0 {
			return translate.Errorf(v1alpha1.ReasonPublishedElsewhere,
				"volume %s is published at %s, and its access mode allows one place", id,
				elsewhere[0])
		}
	}

	return t.bind(ctx, source, opts)
}

// options are what a publish is asked for.
type options struct {
	mount.BindOptions
	readOnly, noExec bool
}

// optionsOf reads mount flags, and refuses those that would have to be in force
// and are not.
func optionsOf(v *store.Volume, flags []string) (options, error) {
	bind, others := mount.BindFlags(flags)
	o := options{BindOptions: bind, readOnly: bind.ReadOnly}
	for _, flag := range flags { // the last one counts
		if flag == "noexec" || flag == "exec" {
			o.noExec = flag == "noexec"
		}
	}

	if v.VolumeMode == record.ModeBlock {
		if len(others) > 0 || o.noExec {
			return o, translate.Errorf(v1alpha1.ReasonInvalidOptions,
				"volume %s is a block device, which takes no mount flags: %q", v.ID, flags)
		}

		// The device refuses to be written; its node stays as it is.
		o.BindOptions = mount.BindOptions{}
		return o, nil
	}

	if v.Backend != record.BackendLoop {
		o.BindOptions = o.BindOptions.Confine(flags)
		return o, nil
	}

	for _, flag := range others {
		if !slices.Contains(v.MountOptions, flag) {
			return o, translate.Errorf(v1alpha1.ReasonInvalidOptions,
				"volume %s was not made with the mount option %q, and is not mounted anew", v.ID,
				flag)
		}
	}

	return o, nil
}

// source opens what is to be bound, proven to be the volume. cleanup is called
// with the outcome: it takes away what was made for a bind that did not come
// about.
func (p *Publisher) source(ctx context.Context, v *store.Volume, readOnly bool) (f *os.File,
	cleanup func(context.Context, error) error, err error) {
	none := func(context.Context, error) error { return nil }
	f, err = p.Store.Open(ctx, v.ID)
	if err != nil {
		return nil, none, translate.WithReason(err)
	}
	if v.VolumeMode != record.ModeBlock || !readOnly {
		return f, none, nil
	}
	defer f.Close()

	dev, err := p.Store.Device(ctx, v.ID)
	if err != nil {
		return nil, none, translate.WithReason(err)
	}

	ro, err := loop.AttachReadOnly(ctx, dev, v.ID)
	if err == nil {
		// As the volume's own: the node that is bound must not come to lead
		// elsewhere.
		err = loop.Pin(ro)
	}

	if err != nil {
		return nil, none, translate.WithReason(err)
	}

	cleanup = func(ctx context.Context, outcome error) error {
		if outcome == nil {
			return nil
		}
		return p.detachUnused(context.WithoutCancel(ctx), ro)
	}
	node, err := os.Open(ro.Path)
	if err == nil {
		number, e := mount.BlockDevice(node)
		if e != nil || number != ro.Dev {
			node.Close()
			err = errors.Join(fmt.Errorf("%s is not the device it was", ro.Path), e)
		}
	}

	if err != nil {
		return nil, none, errors.Join(translate.WithReason(err), cleanup(ctx, err))
	}

	return node, cleanup, nil
}

// Unpublish takes the volume away from target and removes target. It is content
// when nothing is mounted there, and then leaves what there is alone if no
// volume has the id; a mount that is not this volume's stays, and is an error.
func (p *Publisher) Unpublish(ctx context.Context, id, target string) error {
	t, err := openTarget(target)
	if errors.Is(err, fs.ErrNotExist) {
		return p.sweep(ctx, id)
	}
	if err != nil {
		return err
	}
	defer t.Close()

	_, err = p.Store.Get(id)
	ours := err == nil
	for {
		there, err := t.mounted()
		if errors.Is(err, mount.ErrNotMountpoint) || errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}

		mine, err := p.isOf(ctx, id, there)
		there.Close()
		if err != nil {
			return err
		}
		if !mine {
			return translate.Errorf(v1alpha1.ReasonTargetTaken,
				"something else than volume %s is mounted at %s and stays there", id, target)
		}
		if err := t.unmount(ctx); err != nil {
			return err
		}

		ours = true
	}

	if ours {
		if err := t.remove(); err != nil {
			return err
		}
	}

	return p.sweep(ctx, id)
}

// Statfs tells how full the volume is, as statfs(2) would of a filesystem of
// its size. Files is 0 where nothing counts inodes. path has to be a place
// where the volume is published.
func (p *Publisher) Statfs(ctx context.Context, id, path string) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	v, err := p.Store.Find(ctx, id)
	if err != nil {
		return st, translate.WithReason(err)
	}

	source, err := p.Store.Open(ctx, id)
	if err != nil {
		return st, translate.WithReason(err)
	}
	defer source.Close()

	if err := p.checkPublished(ctx, &v, source, path); err != nil {
		return st, err
	}

	const unit = 4096
	if v.VolumeMode == record.ModeBlock {
		// What of a device is used only its user knows.
		st.Bsize, st.Blocks = unit, uint64(v.SizeBytes)/unit
		return st, nil
	}
	if err := unix.Fstatfs(int(source.Fd()), &st); err != nil {
		return st, translate.Errorf(v1alpha1.ReasonFailed, "statfs of volume %s: %w", id, err)
	}
	if st.Type == unix.BTRFS_SUPER_MAGIC {
		st.Files, st.Ffree = 0, 0 // it makes inodes as they are needed
	}

	if v.Backend != record.BackendDirectory {
		return st, nil
	}

	u, err := p.Store.Usage(ctx, id)
	if err != nil {
		return st, translate.WithReason(err)
	}
	if u.Known {
		limitTo(&st, &v, u)
	}

	return st, nil
}

// limitTo makes of a pool's filesystem what is seen through a volume's quota.
func limitTo(st *unix.Statfs_t, v *store.Volume, u backend.Usage) {
	room := int64(st.Bavail) * st.Bsize
	st.Bsize, st.Frsize = 4096, 4096
	used := min(u.Bytes, v.SizeBytes)
	free := v.SizeBytes - used
	st.Blocks, st.Bfree, st.Bavail = uint64(v.SizeBytes/st.Bsize), uint64(free/st.Bsize), uint64(
		min(free, room)/st.Bsize)
	if st.Files == 0 {
		return
	}

	inodes := uint64(max(u.Inodes, 0))
	if v.Inodes > 0 {
		st.Files = uint64(v.Inodes)
		st.Ffree = st.Files - min(inodes, st.Files)
	} else {
		st.Files = st.Ffree + inodes // what the pool's filesystem has left is for everybody
	}
}

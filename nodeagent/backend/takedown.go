package backend

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TakeDown unmounts and detaches what Up made, verified. It does not ask
// whether somebody uses the volume; the kernel does, for what it can see: a
// busy mount or a held device is an *InUseError, and nothing was forced.
func (b *Backends) TakeDown(ctx context.Context, id string, dir *beneath.Dir) error {
	if err := b.UnlinkDevice(id); err != nil {
		return err
	}

	err := b.Release(ctx, dir)
	var busy *loop.BusyError
	switch {
	case errors.As(err, &busy):
		return &InUseError{ID: id, Reason: v1alpha1.ReasonDeviceHeld, By: holderTexts(busy)}
	case errors.Is(err, unix.EBUSY):
		return &InUseError{ID: id, Reason: v1alpha1.ReasonMounted,
			By: []string{"a process with an open file or its working directory in it"}}
	}

	return err
}

// Release unmounts and detaches what is over the image in a directory that
// holds a volume or what is left of one. It is not an error when there is
// nothing; what is in use gives an error and stays.
func (b *Backends) Release(ctx context.Context, dir *beneath.Dir) error {
	if mounted, err := IsMounted(dir); err != nil {
		return err
	} else if mounted {
		if err := b.Fault("unmount"); err != nil {
			return err
		}
		if err := unmount(ctx, dir); err != nil {
			return err
		}
	}

	devices, err := DevicesOf(dir)
	if err != nil || len(devices) == 0 {
		return err
	}

	image, err := dir.OpenFile(record.ImageFile, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer image.Close()

	for _, dev := range devices {
		if err := b.Fault("detach"); err != nil {
			return err
		}
		if err := loop.Detach(ctx, dev, image); err != nil {
			return err
		}
	}

	return nil
}

// elsewhere names who has a device's filesystem mounted in another mount
// namespace than ours.
func (b *Backends) elsewhere(dev loop.Device) []string {
	var by []string
	if table, err := b.Scans.Scan(); err == nil {
		for _, u := range table.OfDevice(dev.Dev) {
			if u.Namespace != table.Namespace {
				by = append(by, u.String())
			}
		}
	}

	if len(by) == 0 {
		by = []string{"a holder of " + dev.Path + " that cannot be seen from here"}
	}

	return by
}

// unmount unmounts what is mounted in a volume's directory. A child of this
// process (mkfs, say) has our descriptors between fork and exec, also those
// within a mount: only who stays is a user.
func unmount(ctx context.Context, dir *beneath.Dir) error {
	const tries = 20
	for try := 1; ; try++ {
		err := mount.UnmountAt(ctx, dir.File(), record.MountDir)
		if !errors.Is(err, unix.EBUSY) || try == tries {
			return err
		}

		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(try) * time.Millisecond):
		}
	}
}

func holderTexts(busy *loop.BusyError) []string {
	out := make([]string, 0, len(busy.Holders)+1)
	for _, h := range busy.Holders {
		out = append(out, h.String())
	}
	if len(out) == 0 {
		out = append(out, "a holder of "+busy.Device.Path+" that cannot be seen from here")
	}
	return out
}

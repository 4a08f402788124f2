package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// readOnlyName begins the names of devices that AttachReadOnly made, so that
// they are told from others' stacked devices.
const readOnlyName = "quarry-ro:"

// AttachReadOnly puts a read-only loop device over a loop device, for a user
// who must not write while others may. Nothing less does it: a read-only bind
// mount of a device node protects the node and not the device, and BLKROSET is
// for all users of a device and stops only those who open it later.
//
// The device is over dev and not over dev's image, so that it reads what was
// written to dev but not synced yet, and [Find] does not take it for a second
// attachment of the image. What its own users have read, it caches: a reader
// beside a writer has to use O_DIRECT or to open the device again. It has the
// size that dev has now.
//
// A device that is there already is returned. name, for people's eyes, is cut
// to fit.
func AttachReadOnly(ctx context.Context, dev Device, name string) (Device, error) {
	ro, err := attachReadOnly(ctx, dev, name)
	if err != nil {
		return Device{}, fmt.Errorf("attach a read-only device over %s: %w", dev.Path, err)
	}
	return ro, nil
}

func attachReadOnly(ctx context.Context, dev Device, name string) (Device, error) {
	// Held open, dev cannot get another image in the meantime.
	node, err := openNode(dev.Number, unix.O_RDONLY)
	if err != nil {
		return Device{}, err
	}
	defer node.Close()
	info, err := status(node)
	if err != nil {
		return Device{}, err
	}
	if backingOf(info) != dev.Backing {
		return Device{}, fmt.Errorf("it is over another file by now, not %s", dev.Backing)
	}
	unlock, err := lock(ctx, node)
	if err != nil {
		return Device{}, err
	}
	defer unlock()
	have, err := ReadOnlyOver(dev)
	if err != nil {
		return Device{}, err
	}
	for _, d := range have {
		if d.SizeBytes == dev.SizeBytes {
			return d, nil
		}
	}
	return configureFree(ctx, nil, node, Options{Name: readOnlyName + name,
		BlockSize: dev.BlockSize, ReadOnly: true})
}

// ReadOnlyOver returns the devices that AttachReadOnly made over dev.
func ReadOnlyOver(dev Device) ([]Device, error) {
	rdev := unix.Mkdev(dev.Dev.Major, dev.Dev.Minor)
	return find(
		func(is identity) bool { return is.rdevice == rdev },
		func(info *unix.LoopInfo64) bool { return info.Rdevice == rdev && isReadOnlyOurs(info) },
	)
}

func isReadOnlyOurs(info *unix.LoopInfo64) bool {
	return info.Flags&unix.LO_FLAGS_READ_ONLY != 0 &&
		strings.HasPrefix(unix.ByteSliceToString(info.File_name[:]), readOnlyName)
}

// DetachReadOnly takes a device that AttachReadOnly made away again. One that
// is gone is no error; one in use stays, and the error is a [*BusyError].
func DetachReadOnly(ctx context.Context, ro Device) error {
	if err := detach(ctx, ro); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("detach %s from %s: %w", ro.Path, ro.BackingPath, err)
	}
	return nil
}

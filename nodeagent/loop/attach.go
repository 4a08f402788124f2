package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say how an image is attached.
type Options struct {
	// Name is for people's eyes: losetup shows it. At most 63 bytes are kept.
	Name string

	// BlockSize is the logical block size in bytes: a power of two from 512 to
	// the page size. 0 takes [BlockSize] of the image. A filesystem depends on
	// the one that it was made with, so remember it.
	BlockSize uint32

	// DirectIO asks that the image is not cached a second time by the
	// filesystem that it lies in. Whether it could be had says Device.DirectIO.
	DirectIO bool

	// ReadOnly refuses writes on the device. Without it the image must be open
	// for writing.
	ReadOnly bool

	// Discard lets discards through, which makes the image sparse, if the
	// filesystem that it lies in can do that. Without it they are switched off,
	// and that is proven. Device.Discard says what is in force; a device that
	// is in use with discards off may have to stay so.
	Discard bool

	// Before is called with the path of a device that is about to get the
	// image, while nobody else can give it one; an error keeps that from
	// happening. Not for a device that has the image already. Nil: nothing is
	// called.
	Before func(path string) error
}

// MismatchError says that an image is attached already, otherwise than asked
// for, and in use, so that this could not be changed.
type MismatchError struct {
	Device  Device
	Options Options
	Differs []string // which options do not match
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: the image is attached and in use with another %s than asked for",
		e.Device.Path, strings.Join(e.Differs, " and "))
}

// AmbiguousError says that several loop devices over one image are in use.
// Each caches the image for itself, so what one writes the others do not see:
// the image is at risk, and a person has to decide which one is right.
type AmbiguousError struct{ Devices []Device }

func (e *AmbiguousError) Error() string {
	var paths []string
	for _, d := range e.Devices {
		paths = append(paths, d.Path)
	}
	return "several loop devices over one image are in use: " + strings.Join(paths, ", ")
}

// Attach puts a loop device over an image, which must be a regular file and
// open for reading and writing (for reading, if ReadOnly).
//
// It is idempotent: a device that is over the image already, with the same
// options, is returned. Unused devices over the image with other options, and
// spare ones, are detached. If that is impossible because they are in use, the
// error is a [*MismatchError] or an [*AmbiguousError].
func Attach(ctx context.Context, image *os.File, opts Options) (Device, error) {
	return attachWith(ctx, nil, image, opts)
}

// attachWith attaches with a device that was prepared, or with any.
func attachWith(ctx context.Context, spare *Spare, image *os.File, opts Options) (Device, error) {
	dev, err := attach(ctx, spare, image, opts)
	if err != nil {
		return Device{}, fmt.Errorf("attach %s to a loop device: %w", image.Name(), err)
	}
	return dev, nil
}

func attach(ctx context.Context, spare *Spare, image *os.File, opts Options) (Device, error) {
	size, err := checkImage(image, opts)
	if err != nil {
		return Device{}, err
	}
	if opts.BlockSize == 0 {
		opts.BlockSize = BlockSize(image)
	}
	if b := opts.BlockSize; b < 512 || b&(b-1) != 0 || b > uint32(os.Getpagesize()) {
		return Device{}, fmt.Errorf("block size %d: not a power of two from 512 to %d",
			b, os.Getpagesize())
	}
	if size%int64(opts.BlockSize) != 0 {
		return Device{}, fmt.Errorf("size %d is not a multiple of the block size %d",
			size, opts.BlockSize)
	}
	unlock, err := lock(ctx, image)
	if err != nil {
		return Device{}, err
	}
	defer unlock()
	found, err := Find(image)
	if err != nil {
		return Device{}, err
	}
	kept, err := keepOne(ctx, found, opts)
	if err != nil {
		return Device{}, err
	}
	if kept != nil {
		return reuse(*kept, opts)
	}
	return configureFree(ctx, spare, image, opts)
}

// checkImage refuses what the kernel would take in another way than meant.
func checkImage(image *os.File, opts Options) (size int64, err error) {
	st, err := image.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("not a regular file but %s", st.Mode().Type())
	}
	flags, err := unix.FcntlInt(image.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return 0, fmt.Errorf("get flags: %w", err)
	}
	if flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return 0, fmt.Errorf("not open for reading: %w", unix.EBADF)
	}
	// The kernel would make the device read-only, and say nothing.
	if flags&unix.O_ACCMODE != unix.O_RDWR && !opts.ReadOnly {
		return 0, fmt.Errorf("not open for writing: %w", unix.EBADF)
	}
	return st.Size(), nil
}

// keepOne looks through the devices that are over the image already. It
// returns the one to use, or nil, and detaches the others.
func keepOne(ctx context.Context, found []Device, opts Options) (*Device, error) {
	fits := func(d Device) bool {
		return len(differs(d, opts)) == 0 && !(opts.Discard && isStuck(d.Number))
	}
	if len(found) == 1 && fits(found[0]) {
		return &found[0], nil // in use or not: to tell takes a look at all open files
	}

	var busy, free []Device
	for _, d := range found {
		inUse, err := isInUse(d)
		if errors.Is(err, errUnbound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if inUse {
			busy = append(busy, d)
		} else {
			free = append(free, d)
		}
	}
	// What this process keeps open it has handed out: it is the one to use, and
	// beside another that is in use it counts as such.
	slices.SortStableFunc(free, func(a, b Device) int { return pinnedFirst(a) - pinnedFirst(b) })
	if len(busy) > 0 && len(free) > 0 && IsPinned(free[0].Number) {
		busy, free = append(busy, free[0]), free[1:]
	}
	if len(busy) > 1 {
		return nil, &AmbiguousError{Devices: busy}
	}
	var kept *Device
	if len(busy) == 1 {
		kept = &busy[0]
		if d := differs(*kept, opts); len(d) > 0 {
			return nil, &MismatchError{Device: *kept, Options: opts, Differs: d}
		}
	} else if i := slices.IndexFunc(free, fits); i >= 0 {
		kept, free = &free[i], slices.Concat(free[:i], free[i+1:])
	}
	for _, d := range free {
		if err := detach(ctx, d); err != nil {
			return nil, fmt.Errorf("detach a spare device: %w", err)
		}
	}
	return kept, nil
}

func pinnedFirst(d Device) int {
	if IsPinned(d.Number) {
		return 0
	}
	return 1
}

// differs names what about a device cannot be changed while it is in use and
// is not as asked for. That direct I/O is missing is no reason to take another
// device if it was asked for: it can be that there is none to be had.
func differs(d Device, opts Options) []string {
	var out []string
	if d.Offset != 0 || d.SizeLimit != 0 {
		out = append(out, "extent")
	}
	if d.BlockSize != opts.BlockSize {
		out = append(out, "block size")
	}
	if d.ReadOnly != opts.ReadOnly {
		out = append(out, "read-only flag")
	}
	return out
}

// reuse brings a device that is over the image already into the state asked
// for, in what can be changed under its users.
func reuse(d Device, opts Options) (Device, error) {
	f, err := openNode(d.Number, accessOf(opts))
	if err != nil {
		return Device{}, err
	}
	defer f.Close()
	if d.DirectIO != opts.DirectIO {
		want := 0
		if opts.DirectIO {
			want = 1
		}
		// EINVAL: the image cannot do it. The device then says so.
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_DIRECT_IO, want); err != nil &&
			!errors.Is(err, unix.EINVAL) {
			return Device{}, fmt.Errorf("set direct I/O of %s: %w", d.Path, err)
		}
	}
	if opts.Discard && isStuck(d.Number) {
		opts.Discard = false // and in use: it goes on without, and says so
	}
	if err := finish(f, d.Number, d.Backing, opts); err != nil {
		return Device{}, err
	}
	return inspectOpen(d.Number, f)
}

// finish proves that the device is over the image, takes the autoclear flag off
// if somebody has set it, and sets discards, last, as the flag's ioctl may
// reset them.
func finish(f *os.File, number int, backing Backing, opts Options) error {
	info, err := status(f)
	if err != nil {
		return err
	}
	if backingOf(info) != backing {
		return fmt.Errorf("%s is over another file, not %s", f.Name(), backing)
	}
	if opts.Discard && isStuck(number) {
		return errStuck
	}
	if info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		if err := takeOffAutoclear(f, number, info); err != nil {
			return err
		}
	}
	if err := setDiscard(number, opts.Discard); err != nil {
		return fmt.Errorf("switch discards of %s: %w", f.Name(), err)
	}
	return nil
}

// takeOffAutoclear makes a device stay when its last user closes it, and leaves
// discards as they are: LOOP_SET_STATUS64 switches them on before Linux 6.8.
func takeOffAutoclear(f *os.File, number int, info *unix.LoopInfo64) error {
	discard, err := readNumber(number, discardInForce)
	if err != nil {
		return err
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		return &os.PathError{Op: "set the loop status of", Path: f.Name(), Err: err}
	}
	if discard == 0 {
		return setDiscard(number, false)
	}
	return nil
}

func accessOf(opts Options) int {
	if opts.ReadOnly {
		return unix.O_RDONLY
	}
	return unix.O_RDWR
}

// configureFree gives the image to the spare device, or to another without an
// image if that one is not to be had.
func configureFree(ctx context.Context, spare *Spare, image *os.File,
	opts Options) (Device, error) {
	var node *os.File
	var number int
	err := errUsed
	if spare != nil && spare.suits(opts) {
		node, number, err = spare.take()
	}
	if errors.Is(err, errUsed) {
		node, number, err = prepare(ctx, spareOptions(opts))
	}
	for try := 0; ; try++ {
		if err != nil {
			return Device{}, err
		}
		var d Device
		d, err = configure(node, number, image, opts)
		switch {
		case err == nil:
			return d, nil
		case errors.Is(err, errStuck):
			remove(number)
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, errUnbound):
			return Device{}, err // else somebody was faster, or removed the device
		}
		if err := pause(ctx, try, err); err != nil {
			return Device{}, err
		}
		node, number, err = prepare(ctx, spareOptions(opts))
	}
}

// configure gives a device that is held the image, and lets go of it. On error
// nothing remains.
func configure(f *os.File, number int, image *os.File, opts Options) (_ Device, err error) {
	defer letGo(f, number)
	backing, err := BackingOf(image)
	if err != nil {
		return Device{}, err
	}
	if opts.Before != nil {
		if err := opts.Before(f.Name()); err != nil {
			return Device{}, err
		}
	}
	// All in one call: each LOOP_SET_* afterwards would freeze the device's
	// queue, and wait for an RCU grace period.
	config := unix.LoopConfig{Fd: uint32(image.Fd()), Size: opts.BlockSize}
	if opts.DirectIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if opts.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], opts.Name)
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
		return Device{}, fmt.Errorf("configure %s: %w", f.Name(), err)
	}
	defer func() {
		if err != nil {
			// It takes effect when the last one closes the device.
			_, clearErr := unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CLR_FD)
			err = errors.Join(err, clearErr)
		}
	}()
	d, err := inspectOpen(number, f)
	if err != nil {
		return Device{}, err
	}
	if wrong := differs(d, opts); d.Backing != backing || len(wrong) > 0 {
		return Device{}, fmt.Errorf("%s is not as configured (%s, %s)",
			d.Path, d.Backing, strings.Join(wrong, ", "))
	}
	if err := finish(f, number, backing, opts); err != nil {
		return Device{}, err
	}
	return inspectOpen(number, f)
}

// BlockSize returns the smallest logical block size, in bytes, with which
// direct I/O on a loop device over this image works: the one of the disk that
// holds the image, or 4096 where that cannot be found out.
func BlockSize(image *os.File) uint32 {
	var st unix.Statx_t
	err := unix.Statx(int(image.Fd()), "", unix.AT_EMPTY_PATH,
		unix.STATX_TYPE|unix.STATX_DIOALIGN, &st)
	if err != nil {
		return 4096
	}
	// Since Linux 6.1, and not on every filesystem.
	if a := st.Dio_offset_align; st.Mask&unix.STATX_DIOALIGN != 0 && a >= 512 && a <= 4096 &&
		a&(a-1) == 0 {
		return a
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/", st.Dev_major, st.Dev_minor)
	// Disk, partition.
	for _, name := range []string{"queue/logical_block_size", "../queue/logical_block_size"} {
		if content, err := os.ReadFile(dir + name); err == nil {
			var size uint32
			if _, err := fmt.Sscan(string(content), &size); err == nil && size >= 512 &&
				size <= 4096 {
				return size
			}
		}
	}
	return 4096
}

package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// countBudget is how many entries of a directory are counted where its size is
// not enforced.
const countBudget = 1_000_000

// found is what is at the path of an adoption.
type found struct {
	// from is the path below the pool.
	from string
	// there is false if nothing is at the path, and the volume is to be made
	// empty.
	there bool
	stat  unix.Stat_t
	// bytes is what the data takes on the disk, files how many directories and
	// files are in it. partly is true if there is more than was counted.
	bytes, files int64
	partly       bool
	// fs is what is in an image, blockSize the logical block that a device over
	// it is to have, in bytes.
	fs        filesystem.Info
	blockSize uint32
}

// is reports whether an open file is the one that was found.
func (f *found) is(file *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(file.Fd()), &st) == nil && st.Dev == f.stat.Dev && st.Ino == f.stat.Ino &&
		st.Mode&unix.S_IFMT == f.stat.Mode&unix.S_IFMT
}

// describe writes into the record of a new volume what was found.
func (f *found) describe(rec *record.Volume) {
	rec.AdoptedFrom = f.from
	if !f.there {
		return
	}

	rec.Adopting = record.AdoptionMoving
	rec.Owner, rec.Group, rec.Mode = int64(f.stat.Uid), int64(f.stat.Gid), f.stat.Mode&0o7777
	rec.MkfsOptions = nil
	if rec.Backend == record.BackendLoop {
		rec.FSUUID, rec.LogicalBlockSize = f.fs.UUID, f.blockSize
	}
}

// examine looks at what the request is to adopt, and fits the request to it:
// pool, size and filesystem. It may read a whole tree, so it is called without
// any lock. Data that cannot be adopted is a *RefusedError.
func (s *Store) examine(ctx context.Context, r *Request) error {
	if r.Adopt == nil || s.lookup(r.ID) != nil {
		return nil
	}

	var pools []config.Pool
	for _, p := range s.pools {
		pools = append(pools, p.cfg)
	}

	cfg, from, err := poolAbove(pools, r.Adopt.Path)
	if err != nil {
		return err
	}
	if r.Pool != "" && r.Pool != cfg.Name {
		return notAdoptable("%s lies in pool %q, and the volume is to be in pool %q",
			r.Adopt.Path, cfg.Name, r.Pool)
	}

	for _, p := range s.pools {
		if p.name() != cfg.Name {
			continue
		}
		if !r.wants(p, s.opts.Node) {
			return notAdoptable("%s lies in pool %q, whose labels do not match %q",
				r.Adopt.Path, cfg.Name, r.PoolSelector)
		}

		r.Pool = cfg.Name
		features, _, err := p.state()
		if err != nil {
			return err
		}

		table, err := s.backends.Scans.Scan()
		if err != nil {
			return fmt.Errorf("look for mounts at %s: %w", r.Adopt.Path, err)
		}

		e := &examination{
			adopt:       *r.Adopt,
			from:        from,
			pools:       pools,
			table:       table,
			features:    features,
			fstype:      r.FSType,
			volumeMode:  r.VolumeMode,
			enforcement: r.Enforcement,
			ownerOf:     s.ownerOfFilesystem,
		}
		e.linkIn = func(from string) string { return s.linkIn(p, from) }
		err = p.with(func(root *disk.Root) error {
			r.found, err = e.run(ctx, root)
			return err
		})
		if err != nil || !r.found.there {
			return err
		}

		return r.suit()
	}

	return notAdoptable("%s lies in no pool of this node", r.Adopt.Path)
}

// suit fits the request to what was found.
func (r *Request) suit() error {
	f := r.found
	if r.Adopt.isFile() {
		r.SizeBytes, r.FSType, r.MkfsOptions = roundUp(f.stat.Size), string(f.fs.Type), nil
		return nil
	}
	if r.Enforcement != record.EnforcementQuota {
		return nil
	}
	if f.bytes > r.SizeBytes {
		return notAdoptable("%s holds %s (%d bytes), more than the %s of the volume; ask for a "+
			"capacity that is larger", r.Adopt.Path, disk.BytesText(f.bytes), f.bytes,
			disk.BytesText(r.SizeBytes))
	}
	if r.Inodes > 0 && f.files > r.Inodes {
		return notAdoptable("%s holds %d files and directories, more than the %d of the volume",
			r.Adopt.Path, f.files, r.Inodes)
	}

	return nil
}

// poolAbove finds the pool that a path lies in, the innermost if there are
// several. from is the path below that pool's directory.
func poolAbove(pools []config.Pool, name string) (in config.Pool, from string, err error) {
	for _, p := range pools {
		if rel, ok := strings.CutPrefix(name, strings.TrimSuffix(p.Path, "/")+"/"); ok &&
			len(p.Path) > len(in.Path) {
			in, from = p, rel
		}

		if p.Path == name || strings.HasPrefix(p.Path, name+"/") {
			return in, "", notAdoptable("%s is, or holds, the directory of pool %q", name, p.Name)
		}
	}

	if in.Path == "" {
		var paths []string
		for _, p := range pools {
			paths = append(paths, p.Path)
		}
		return in, "", notAdoptable("%s lies in no pool of this node; what is adopted has to lie "+
			"below one of %s", name, strings.Join(paths, ", "))
	}

	if first, _, _ := strings.Cut(from, "/"); first == record.MetaDir {
		return in, "", notAdoptable("%s lies in the pool's own directory %s", name, record.MetaDir)
	}

	return in, from, nil
}

// examination is one look at a path. It changes nothing.
type examination struct {
	adopt       Adoption
	from        string
	pools       []config.Pool
	table       *mount.Table
	features    disk.Features
	fstype      string
	volumeMode  string
	enforcement string
	// ownerOf names what has a filesystem of this UUID already; empty if
	// nothing has.
	ownerOf func(uuid string) string
	// linkIn names a volume that was adopted from below a path of the pool;
	// empty if none was.
	linkIn func(from string) string
	// enough is the number of entries after which counting ends. With 0 it ends
	// early only where the count need not be exact.
	enough int
	// uses are mounts of the data elsewhere, which do no harm.
	uses []mount.Use
}

func (e *examination) run(ctx context.Context, r *disk.Root) (*found, error) {
	f := &found{from: e.from}
	if err := e.outside(r); err != nil {
		return f, err
	}

	old, err := disk.OpenOldPath(r, e.from)
	if err != nil {
		return f, e.unreachable(err, path.Dir(e.adopt.Path))
	}
	defer old.Close()

	var top, parent unix.Stat_t
	if err := errors.Join(unix.Fstat(int(r.File().Fd()), &top),
		unix.Fstat(int(old.Parent.File().Fd()), &parent)); err != nil {
		return f, err
	}
	if top.Dev != parent.Dev {
		return f, notAdoptable("%s is in another filesystem or subvolume than the pool; copy the "+
			"data into a new volume", e.adopt.Path)
	}

	to, err := old.Parent.Readlink(old.Name)
	if err == nil {
		f.there = true
		return f, notAdoptable("%s is a symbolic link to %s; a link cannot be adopted, and the "+
			"link of a volume that was adopted leads to its data", e.adopt.Path, to)
	}

	source, err := old.Open()
	if errors.Is(err, fs.ErrNotExist) {
		if e.adopt.mayCreate() {
			return f, nil
		}
		return f, notAdoptable("there is nothing at %s; type %sOrCreate would make an empty volume",
			e.adopt.Path, e.adopt.Type)
	}
	if err != nil {
		return f, e.unreachable(err, e.adopt.Path)
	}
	defer source.Close()

	if err := unix.Fstat(int(source.Fd()), &f.stat); err != nil {
		return f, err
	}

	f.there, f.bytes = true, f.stat.Blocks*512
	if err := e.unmounted(source); err != nil {
		return f, err
	}

	kind := f.stat.Mode & unix.S_IFMT
	switch {
	case e.adopt.isFile() && kind != unix.S_IFREG:
		return f, notAdoptable("%s is not a regular file", e.adopt.Path)
	case !e.adopt.isFile() && kind != unix.S_IFDIR:
		return f, notAdoptable("%s is not a directory; an image file is adopted with type File",
			e.adopt.Path)
	case kind == unix.S_IFREG:
		return f, e.image(f, old)
	default:
		return f, e.directory(ctx, f, old)
	}
}

// outside refuses a path that is a volume or a pool, or lies in one.
func (e *examination) outside(r *disk.Root) error {
	first, _, _ := strings.Cut(e.from, "/")
	if disk.IsLink(r.Dir, first) {
		return nil // the walk to the path reports it
	}

	dir, err := r.OpenDir(first)
	if err != nil {
		return nil // no directory, or not to be opened: the walk to the path reports it
	}
	defer dir.Close()

	for _, name := range []string{record.VolumeFile, record.MetaDir} {
		if there, err := dir.Exists(name); err != nil || there {
			return errors.Join(err, notAdoptable("%s is, or lies in, a volume or a pool",
				e.adopt.Path))
		}
	}

	return nil
}

// unreachable says why a path could not be opened without following links or
// crossing mounts.
func (e *examination) unreachable(err error, at string) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		return notAdoptable("%s leads over a symbolic link; name the path without it", at)
	case errors.Is(err, unix.EXDEV):
		return notAdoptable("%s is a mount point, or lies on another filesystem than the pool; "+
			"unmount it, or copy the data into a new volume", at)
	case errors.Is(err, fs.ErrNotExist):
		return notAdoptable("there is no directory %s", at)
	case errors.Is(err, unix.ENOTDIR):
		return notAdoptable("%s is not a directory (and a symbolic link is not followed)", at)
	}

	return err
}

// unmounted refuses what has mounts on it or in it, in any mount namespace:
// they would hide a part of the volume. That the data is mounted elsewhere, as
// kubelet mounts it for pods, does no harm: a mount is of the directory, not of
// its name.
func (e *examination) unmounted(source *os.File) error {
	if !e.table.HostPID {
		return fmt.Errorf("%s: it cannot be proven that nothing is mounted there: the machine's "+
			"processes are not visible (the agent needs hostPID)", e.adopt.Path)
	}

	place, err := mount.PlaceOf(source)
	if err != nil {
		return err
	}
	if over := e.table.Over(place); len(over) > 0 {
		return notAdoptable("something is mounted at or below %s: %s; unmount it first",
			e.adopt.Path, over[0])
	}

	e.uses = e.table.Under(place)
	return nil
}

func (e *examination) directory(ctx context.Context, f *found, old *disk.OldPath) error {
	if id := e.linkIn(e.from); id != "" {
		return notAdoptable("volume %s was adopted from below %s, and the link that leads there "+
			"would lead nowhere", id, e.adopt.Path)
	}

	dir, err := old.Parent.OpenDir(old.Name)
	if err != nil {
		return e.unreachable(err, e.adopt.Path)
	}
	defer dir.Close()

	if !f.is(dir.File()) {
		return fmt.Errorf("%s was replaced while it was looked at", e.adopt.Path)
	}

	limited := e.enforcement != record.EnforcementNone
	budget := e.enough
	if budget == 0 && !limited {
		budget = countBudget
	}

	at := new(quota.Cursor)
	report, err := quota.Measure(ctx, dir.File(), at, budget)
	if err != nil {
		return err
	}

	f.bytes, f.files, f.partly = int64(report.Bytes),
		int64(report.Inodes+report.Special), !at.Done()
	switch {
	case report.Mounts > 0:
		return notAdoptable("something is mounted below %s; unmount it first", e.adopt.Path)
	case limited && e.features.Filesystem == "btrfs":
		// A directory cannot become a subvolume, and what a subvolume held
		// before simple quotas were switched on is charged to nobody.
		return notAdoptable(
			"on btrfs the size of data that is there already cannot be enforced; " +
				"use enforcement none, or copy it into a new volume")
	case limited && !e.features.ProjectQuota:
		return notAdoptable("the pool's filesystem (%s) does not enforce sizes of directories "+
			"(%s); use enforcement none, or copy the data into a new volume", e.features.Filesystem,
			e.features.NoQuotaBecause)
	case limited && report.Immutable > 0:
		return notAdoptable("%d files or directories in %s are immutable or append-only, and "+
			"their size could not be enforced; take the flags off (chattr -R -i -a)",
			report.Immutable, e.adopt.Path)
	}

	return nil
}

func (e *examination) image(f *found, old *disk.OldPath) error {
	image, err := old.Parent.OpenFile(old.Name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return e.unreachable(err, e.adopt.Path)
	}
	defer image.Close()

	if !f.is(image) {
		return fmt.Errorf("%s was replaced while it was looked at", e.adopt.Path)
	}

	switch {
	case f.stat.Nlink > 1:
		return notAdoptable("%s has %d names (hard links), and another one would lead into the "+
			"volume; remove the others", e.adopt.Path, f.stat.Nlink)
	case f.stat.Size < minimumRaw:
		return notAdoptable("%s is of %d bytes, and a volume has at least %s",
			e.adopt.Path, f.stat.Size, disk.BytesText(minimumRaw))
	}

	if err := e.idle(image); err != nil {
		return err
	}

	if e.features.Filesystem == "btrfs" {
		flags, err := unix.IoctlGetInt(int(image.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		if flags&backend.FsNoCOW == 0 {
			return notAdoptable("%s was made with copy-on-write, which breaks direct I/O and what "+
				"is reserved; copy it to a new file that had `chattr +C` while it was empty, and "+
				"adopt that", e.adopt.Path)
		}
	}

	if e.volumeMode == record.ModeBlock {
		// Nobody knows with what block size it was written. A device of 512
		// takes larger writes; the other way round it would not work.
		f.blockSize = 512
		return nil
	}

	return e.filesystem(f, image)
}

// idle refuses an image that somebody has open: another loop device, or a
// virtual machine.
func (e *examination) idle(image *os.File) error {
	devices, err := loop.Find(image)
	if err != nil {
		return err
	}
	if len(devices) > 0 {
		return notAdoptable("%s is beneath %s already%s; unmount and detach it (losetup -d) first",
			e.adopt.Path, devices[0].Path, backend.HoldersText(devices[0]))
	}

	// The kernel grants a write lease only to the one who has the file open
	// alone (fcntl(2)).
	_, err = unix.FcntlInt(image.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	switch {
	case err == nil:
		_, err = unix.FcntlInt(image.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	case errors.Is(err, unix.EAGAIN):
		return notAdoptable("%s is open in another process; stop that first", e.adopt.Path)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EACCES):
		return nil // no leases here, and no other way to know
	}

	return err
}

// filesystem looks at what is in an image.
func (e *examination) filesystem(f *found, image *os.File) (err error) {
	if f.fs, err = filesystem.Identify(image); err != nil {
		return notAdoptable("%s holds no filesystem that volumes have (%v), and nothing is "+
			"formatted that has data; adopt it with volumeMode Block, or make a new volume",
			e.adopt.Path, err)
	}

	switch {
	case f.fs.SizeBytes > f.stat.Size:
		return notAdoptable("%s is cut off: its %s is of %d bytes, and the file of %d",
			e.adopt.Path, f.fs.Type, f.fs.SizeBytes, f.stat.Size)
	case !f.fs.Clean || f.fs.HasErrors:
		return notAdoptable("the %s in %s has errors; repair it first (fsck)",
			f.fs.Type, e.adopt.Path)
	case e.fstype != "" && e.fstype != string(f.fs.Type):
		return notAdoptable("%s holds %s, and the volume is to be %s",
			e.adopt.Path, f.fs.Type, e.fstype)
	}

	if owner := e.ownerOf(f.fs.UUID); owner != "" {
		return notAdoptable("the %s in %s has the UUID %s of %s: one is a copy of the other; give "+
			"it a new one first (%s)", f.fs.Type, e.adopt.Path, f.fs.UUID, owner,
			newUUID[f.fs.Type])
	}

	// A filesystem cannot be mounted on a device whose logical blocks are
	// larger than its own.
	own := uint32(min(f.fs.BlockSize, blockAlign))
	if f.fs.Type == filesystem.XFS {
		var sector [2]byte // sb_sectsize (fs/xfs/libxfs/xfs_format.h)
		if _, err := image.ReadAt(sector[:], 102); err != nil {
			return err
		}
		own = uint32(binary.BigEndian.Uint16(sector[:]))
	}

	f.blockSize = min(loop.BlockSize(image), own)
	return nil
}

var newUUID = map[filesystem.Type]string{
	filesystem.Ext4: "tune2fs -U random", filesystem.XFS: "xfs_admin -U generate",
	filesystem.Btrfs: "btrfstune -u",
}

// isBelow reports whether a volume was adopted from below a path of its pool.
func isBelow(rec *record.Volume, from string) bool {
	return strings.HasPrefix(rec.AdoptedFrom, from+"/")
}

func (s *Store) linkIn(p *pool, from string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, v := range s.volumes {
		if v.pool == p && isBelow(&v.rec, from) {
			return id
		}
	}
	return ""
}

// ownerOfFilesystem names the volume, or what else on the node, that has a
// filesystem of this UUID.
func (s *Store) ownerOfFilesystem(uuid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()

	for id, v := range s.volumes {
		if v.rec.FSUUID == uuid {
			return "volume " + id
		}
	}

	for _, t := range s.trash {
		if t.rec != nil && t.rec.FSUUID == uuid {
			return "volume " + t.id + " in the trash"
		}
	}

	return mountedBtrfs(uuid)
}

// mountedBtrfs names a mounted btrfs of this UUID; empty if there is none. The
// kernel takes a second btrfs of one UUID for another device of the first. ext4
// does not care, and of xfs the kernel refuses to mount a second.
func mountedBtrfs(uuid string) string {
	if _, err := os.Stat(filepath.Join("/sys/fs/btrfs", uuid)); err == nil {
		return "a btrfs that is mounted"
	}
	return ""
}

package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// FreeingSuffix marks an entry of the trash whose content is being freed: there
// is no way back from there.
const FreeingSuffix = ".freeing"

// TrashID returns the id in the name of a trash entry.
func TrashID(entry string) (id string, ok bool) {
	id, at, ok := strings.Cut(strings.TrimSuffix(entry, FreeingSuffix), "@")
	if _, err := strconv.ParseInt(at, 10, 64); !ok || err != nil || record.CheckID(id) != nil {
		return "", false
	}
	return id, true
}

func IsFreeing(entry string) bool { return strings.HasSuffix(entry, FreeingSuffix) }

// KeptFor is how long an entry of the trash is still kept, as the disk tells
// it: without what a running agent saw pass. Zero: it is due.
func KeptFor(entry string, t *record.Trash) time.Duration {
	if t.Purge || IsFreeing(entry) || t.Deletion.OnDelete != "trash" {
		return 0
	}
	return max(Seconds(t.Deletion.RetentionSeconds)-Seconds(t.ElapsedSeconds), 0)
}

// Seconds makes a Duration of a record's number of seconds. A number too large
// for a Duration is the longest there is: such trash is kept, and not freed at
// once.
func Seconds(n int64) time.Duration {
	const most = int64(math.MaxInt64/time.Second) / 2
	return time.Duration(min(max(n, 0), most)) * time.Second
}

// ReadEntry reads the record in the directory name, which must be that of
// volume id.
func ReadEntry(parent *beneath.Dir, name, id string) (*record.Volume, error) {
	rec, err := ReadVolume(parent, name)
	if err == nil && rec.ID != id {
		err = &record.UnreadableError{Reason: fmt.Sprintf("it is the record of volume %s", rec.ID)}
	}
	if err != nil {
		return nil, err
	}
	return rec, nil
}

// ReadVolume reads the record of the directory name of a pool.
func ReadVolume(parent *beneath.Dir, name string) (*record.Volume, error) {
	dir, err := parent.OpenDir(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	data, err := dir.ReadFile(record.VolumeFile, record.MaxRead)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &record.UnreadableError{Reason: "there is no " + record.VolumeFile}
	}
	if err != nil {
		return nil, err
	}
	return record.DecodeVolume(data)
}

// WriteVolume replaces the record in a volume's directory, durably.
func WriteVolume(dir *beneath.Dir, v *record.Volume) error {
	data, err := record.EncodeVolume(v)
	if err == nil {
		err = dir.WriteFile(record.VolumeFile, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the record of volume %s: %w", v.ID, err)
	}
	return nil
}

// ReadNote reads what deleting the volume in the entry name of the trash is to
// mean.
func ReadNote(trash *beneath.Dir, name string) (*record.Trash, error) {
	dir, err := trash.OpenDir(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	data, err := dir.ReadFile(record.TrashedFile, record.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &record.UnreadableError{Reason: "there is no " + record.TrashedFile}
	}
	if err != nil {
		return nil, err
	}
	return record.DecodeTrash(data)
}

// NamesIn lists a directory below parent; none where it is missing.
func NamesIn(parent *beneath.Dir, name string) ([]string, error) {
	dir, err := parent.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Names()
	slices.Sort(names)
	return names, err
}

// namesAtOnce is how many names of a directory are in memory at once.
const namesAtOnce = 1024

// SomeNames returns up to namesAtOnce names of a directory.
func SomeNames(dir *beneath.Dir) ([]string, error) {
	f, err := dir.OpenFile(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(namesAtOnce)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// IsLink reports whether name is a symbolic link: in a pool's directory, the one
// that an adoption left.
func IsLink(dir *beneath.Dir, name string) bool {
	st, err := dir.Stat(name)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// IsUnreadable reports an error of a record's content, not of the disk.
func IsUnreadable(err error) bool {
	var unreadable *record.UnreadableError
	return errors.As(err, &unreadable)
}

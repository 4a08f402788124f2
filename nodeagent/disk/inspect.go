package disk

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Inspection is what is written on a pool's disk.
type Inspection struct {
	Identity record.Pool
	// Volumes are ordered by id. Whether they can be used was not looked at.
	Volumes []record.Volume
	Trash   []Trashed
	// Unfinished are the names in tmp: being made at this moment, or left by a
	// crash.
	Unfinished []string
	// Broken are directories that cannot be read as volumes or as trash, by
	// name.
	Broken map[string]error
}

// Trashed describes an entry of the trash.
type Trashed struct {
	Pool  string
	Entry string
	record.Trash
	// Volume is nil for an attempt that never became a volume.
	Volume *record.Volume
	// Remaining is how long it is still kept; zero: its space is being freed.
	Remaining time.Duration
}

// Inspect reads the pool at path and changes nothing: nothing is made,
// attached, mounted or swept. It is how `quarry ls` looks at a disk, also one
// of another node or cluster. Without a pool there it is an *OfflineError. What
// was read before an error is returned with it.
func Inspect(path string) (*Inspection, error) {
	r, identity, err := Open(&config.Pool{Name: path, Path: path}, &Expectation{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	in := &Inspection{Identity: *identity, Broken: map[string]error{}}
	names, err := r.Names()
	if err != nil {
		return in, err
	}
	slices.Sort(names)
	for _, name := range names {
		if record.CheckID(name) != nil || IsLink(r.Dir, name) {
			continue
		}
		rec, err := ReadEntry(r.Dir, name, name)
		if err != nil {
			in.Broken[name] = err
			continue
		}
		if copied := CopyOn(r, identity.Name, rec); copied != nil {
			in.Broken[name] = copied
			continue
		}
		if unmoved, err := IsUnmoved(r.Dir, rec); err != nil || unmoved {
			in.Unfinished = append(in.Unfinished, name)
			continue
		}
		in.Volumes = append(in.Volumes, *rec)
	}
	if err := in.readTrash(r, identity.Name); err != nil {
		return in, err
	}
	unfinished, err := NamesIn(r.Meta, record.TmpDir)
	in.Unfinished = append(in.Unfinished, unfinished...)
	return in, err
}

func (in *Inspection) readTrash(r *Root, pool string) error {
	trash, err := r.Meta.OpenDir(record.TrashDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer trash.Close()
	names, err := trash.Names()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		id, ok := TrashID(name)
		if !ok {
			continue
		}
		note, noteErr := ReadNote(trash, name)
		if noteErr != nil && !IsFreeing(name) {
			in.Broken[record.TrashDir+"/"+name] = noteErr
			continue
		}
		t := Trashed{Pool: pool, Entry: name}
		if note != nil {
			t.Trash = *note
		}
		t.Volume, _ = ReadEntry(trash, name, id)
		if t.Volume != nil && !IsFreeing(name) {
			if copied := CopyOn(r, pool, t.Volume); copied != nil {
				in.Broken[record.TrashDir+"/"+name] = copied
				continue
			}
		}
		t.Remaining = KeptFor(name, &t.Trash)
		in.Trash = append(in.Trash, t)
	}
	return nil
}

package store

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Inspection is what is written on a pool's disk.
type Inspection struct {
	Identity record.Pool
	// Volumes are ordered by id. Whether they can be used was not looked at.
	Volumes []Volume
	Trash   []Trashed
	// Unfinished are the names in tmp: being made at this moment, or left by a crash.
	Unfinished []string
	// Broken are directories that can not be read as volumes or as trash, by name.
	Broken map[string]error
}

// Inspect reads the pool at path and changes nothing: nothing is made, attached, mounted or swept. It is how `quarry ls`
// looks at a disk, also one of another node or cluster. Without a pool there it is an *OfflineError. What was read before an
// error is returned with it.
func Inspect(path string) (*Inspection, error) {
	p := &pool{cfg: config.Pool{Name: path, Path: path}}
	r, identity, err := p.openAs(expectation{})
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
	s := New(Options{})
	for _, name := range names {
		if record.CheckID(name) != nil || isLink(r.Dir, name) {
			continue
		}
		rec, err := readEntry(r.Dir, name, name)
		if err != nil {
			in.Broken[name] = err
			continue
		}
		if copied := copyOn(r, identity.Name, rec); copied != nil {
			in.Broken[name] = copied
			continue
		}
		if unmoved, err := isUnmoved(r.Dir, rec); err != nil || unmoved {
			in.Unfinished = append(in.Unfinished, name)
			continue
		}
		v := &volume{id: name, pool: p, rec: *rec}
		in.Volumes = append(in.Volumes, Volume{Volume: *rec, Pool: identity.Name, PoolUID: identity.UID, Path: s.path(v)})
	}
	if err := in.readTrash(r, identity.Name); err != nil {
		return in, err
	}
	unfinished, err := namesIn(r.meta, record.TmpDir)
	in.Unfinished = append(in.Unfinished, unfinished...)
	return in, err
}

func (in *Inspection) readTrash(r *root, pool string) error {
	trash, err := r.meta.OpenDir(record.TrashDir)
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
		id, ok := trashID(name)
		if !ok {
			continue
		}
		note, noteErr := readNote(trash, name)
		if noteErr != nil && !isFreeing(name) {
			in.Broken[record.TrashDir+"/"+name] = noteErr
			continue
		}
		t := &trashed{entry: name, id: id}
		if note != nil {
			t.trash = *note
		}
		t.rec, _ = readEntry(trash, name, id)
		if t.rec != nil && !isFreeing(name) {
			if copied := copyOn(r, pool, t.rec); copied != nil {
				in.Broken[record.TrashDir+"/"+name] = copied
				continue
			}
		}
		in.Trash = append(in.Trash, Trashed{Pool: pool, Entry: name, Trash: t.trash, Volume: t.rec, Remaining: t.left()})
	}
	return nil
}

package disk

import (
	"errors"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// The index by claim is for people who look at a disk:
// .quarry/by-claim/<namespace>/<claim> is a link to a volume. Nothing reads it
// but to tidy it up.

// RemoveClaim removes a link if goes is true for the volume that it leads to,
// and then the link's directory if nothing else is in it.
func RemoveClaim(r *Root, namespace, claim string, goes func(id string) bool) error {
	index, err := r.Meta.OpenDir(record.ByClaimDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer index.Close()
	dir, err := index.OpenDir(namespace)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()

	if to, err := dir.Readlink(claim); err != nil || !goes(path.Base(to)) {
		return nil
	}
	if err := dir.Unlink(claim); err != nil {
		return err
	}
	if err := index.Rmdir(namespace); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// DanglingClaims calls found for each link of the index that leads to no volume
// of the claim's.
func DanglingClaims(r *Root, leads func(id, namespace, claim string) bool,
	found func(dir *beneath.Dir, namespace, claim string) error) error {
	namespaces, err := NamesIn(r.Meta, record.ByClaimDir)
	if err != nil {
		return err
	}
	for _, ns := range namespaces {
		dir, err := r.Meta.OpenDir(path.Join(record.ByClaimDir, ns))
		if err != nil {
			continue // not a directory: not ours
		}
		names, err := dir.Names()
		for _, claim := range names {
			if to, e := dir.Readlink(claim); e == nil && !leads(path.Base(to), ns, claim) {
				err = errors.Join(err, found(dir, ns, claim))
			}
		}
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

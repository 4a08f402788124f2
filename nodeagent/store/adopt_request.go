package store

import (
	"path"
	"slices"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Adoption makes a volume of data that is on the node already. A directory
// becomes a volume's data, a file becomes a volume's image, by being renamed; a
// symbolic link is left in its place, so that everything that names the old
// path goes on working.
//
// # Crash order
//
// The volume's directory is built under tmp and renamed into place with a link
// in it where the data belongs: the very link that is to be left at the old
// path. Then RENAME_EXCHANGE swaps the two in one step. That is the commit.
// Before it the data is at the old path, and the volume's directory holds
// nothing but a link, by which the next start knows that it is to be cleared
// away. After it both paths lead to the data, and the next start finishes what
// is left to do: quota ids, the order within an image. So the data is at no
// time below tmp, where things are cleared away, and at no time without a path
// that leads to it.
type Adoption struct {
	// Path is where it is: absolute, clean, and below one of the node's pools.
	Path string
	// Type is one of the API's: Directory, DirectoryOrCreate, File,
	// FileOrCreate. Empty: Directory.
	Type string
}

func (a *Adoption) isFile() bool {
	return a.Type == string(v1alpha1.AdoptFile) || a.Type == string(v1alpha1.AdoptFileOrCreate)
}

// mayCreate reports whether the volume is made empty if nothing is there.
func (a *Adoption) mayCreate() bool {
	return a.Type == string(v1alpha1.AdoptDirectoryOrCreate) ||
		a.Type == string(v1alpha1.AdoptFileOrCreate)
}

func notAdoptable(format string, args ...any) error {
	return refuse(v1alpha1.ReasonNotAdoptable, format, args...)
}

// normalize checks what needs no look at the disk and decides the request's
// backend.
func (a *Adoption) normalize(r *Request) error {
	if a.Type == "" {
		a.Type = string(v1alpha1.AdoptDirectory)
	}

	types := []string{string(v1alpha1.AdoptDirectory), string(v1alpha1.AdoptDirectoryOrCreate),
		string(v1alpha1.AdoptFile), string(v1alpha1.AdoptFileOrCreate)}
	backend := record.BackendDirectory
	if a.isFile() {
		backend = record.BackendLoop
	}

	switch {
	case !slices.Contains(types, a.Type):
		return refuse(v1alpha1.ReasonInvalidOptions, "adopt: type %q is none of %v", a.Type, types)
	case !path.IsAbs(a.Path) || path.Clean(a.Path) != a.Path:
		return notAdoptable("%q is not an absolute path without \".\", \"..\", \"//\" or a slash "+
			"at its end", a.Path)
	case r.Source != nil:
		return refuse(v1alpha1.ReasonInvalidOptions,
			"a volume is adopted or made from a source, not both")
	case r.Backend != string(v1alpha1.BackendAuto) && r.Backend != backend:
		return refuse(v1alpha1.ReasonInvalidOptions, "what is adopted as %s is a volume of "+
			"backend %s, not %s", a.Type, backend, r.Backend)
	case !a.isFile() && r.VolumeMode == record.ModeBlock:
		return notAdoptable("a directory cannot be a block device; adopt an image (type File), " +
			"or use volumeMode Filesystem")
	case !a.isFile() && r.Enforcement == record.EnforcementStrict:
		return notAdoptable("enforcement strict is only kept by images, and %s is adopted as a "+
			"directory; use enforcement quota, or make a new volume and copy the data", a.Path)
	}

	r.Backend = backend
	return nil
}

// adopts reports whether there is data to make the volume of.
func (r *Request) adopts() bool { return r.found != nil && r.found.there }

// occupied is how many of the requested bytes the data takes on the disk
// already. They are neither free nor counted as a volume's yet.
func (r *Request) occupied() int64 {
	if !r.adopts() {
		return 0
	}
	return min(r.found.bytes, r.SizeBytes)
}

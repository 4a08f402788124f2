package store

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// blockAlign is what sizes are rounded up to, in bytes: the block of every
// filesystem used and the largest logical block of a device.
const blockAlign = 4096

// minimumRaw is the least size of a Block volume and of a directory with a
// limit, in bytes.
const minimumRaw = 1 << 20

// DefaultMode is the permissions of a new volume's root directory: anybody in
// the pod may write, as with kubelet's emptyDir.
const DefaultMode = 0o777

// Request is what a caller asks for.
type Request struct {
	ID string

	// Pool is a pool's name; empty: among those PoolSelector (nil: all) matches
	// by their labels (PoolLabels) the one with the fewest volumes of
	// Origin.SpreadGroup, if that is given, and among those the one with the
	// most room.
	Pool         string
	PoolSelector labels.Selector

	// Backend is one of the API's: auto, directory, loop. Enforcement,
	// VolumeMode and Allocation are the record's words.
	Backend     string
	Enforcement string
	VolumeMode  string
	Allocation  string

	// SizeBytes is rounded up to a multiple of 4096.
	SizeBytes int64
	// Inodes is how many files a directory may hold, or an image's filesystem
	// is made with. 0: in proportion to the size (DefaultInodes) where a
	// project quota holds it, the usual number in an image. UnlimitedInodes: no
	// limit of its own.
	Inodes int64

	// FSType is made in a loop image; empty: the pool's default.
	FSType       string
	MkfsOptions  []string
	MountOptions []string

	Owner, Group int64
	Mode         uint32 // 0: DefaultMode

	Source *record.Source
	Origin record.Origin

	// Adopt makes the volume of what is on the node already; nil: it is made
	// empty. A file's size is then the volume's.
	Adopt *Adoption
	// found is what Admit found at Adopt's path.
	found *found
}

// normalize fills in defaults and refuses what no pool could make.
func (r *Request) normalize() error {
	if err := record.CheckID(r.ID); err != nil {
		return err
	}

	defaults := []struct {
		field   *string
		value   string
		allowed []string
		name    string
	}{
		{&r.Backend, string(v1alpha1.BackendAuto),
			[]string{"auto", record.BackendDirectory, record.BackendLoop}, "backend"},
		{&r.Enforcement, record.EnforcementQuota,
			[]string{record.EnforcementStrict, record.EnforcementQuota, record.EnforcementNone},
			"enforcement"},
		{&r.VolumeMode, record.ModeFilesystem,
			[]string{record.ModeFilesystem, record.ModeBlock}, "volumeMode"},
		{&r.Allocation, record.AllocationThick,
			[]string{record.AllocationThick, record.AllocationThin}, "allocation"},
	}
	for _, d := range defaults {
		if *d.field == "" {
			*d.field = d.value
		}

		if !slices.Contains(d.allowed, *d.field) {
			return refuse(v1alpha1.ReasonInvalidOptions, "%s %q is none of %v", d.name,
				*d.field, d.allowed)
		}
	}

	if r.Mode == 0 {
		r.Mode = DefaultMode
	}

	if r.Adopt != nil {
		adopt := *r.Adopt
		r.Adopt = &adopt
		if err := r.Adopt.normalize(r); err != nil {
			return err
		}
	}

	switch {
	case r.SizeBytes <= 0 || r.SizeBytes > 1<<62:
		return refuse(v1alpha1.ReasonInvalidOptions,
			"a size of %d bytes is not one a volume can have", r.SizeBytes)
	case r.Mode&^0o7777 != 0:
		return refuse(v1alpha1.ReasonInvalidOptions, "mode %#o is not one of a directory", r.Mode)
	case r.Inodes < UnlimitedInodes:
		return refuse(v1alpha1.ReasonInvalidOptions, "inodes %d is negative", r.Inodes)
	case r.Backend == record.BackendDirectory && r.VolumeMode == record.ModeBlock:
		return refuse(v1alpha1.ReasonUnsupported, "a directory cannot be a block device: "+
			"volumeMode Block is always made by the loop backend")
	case r.Backend == record.BackendDirectory && r.Enforcement == record.EnforcementStrict:
		return refuse(v1alpha1.ReasonUnsupported, "enforcement strict is always made by the loop "+
			"backend: the owner of a file in a directory can leave its quota")
	case r.Source != nil:
		return refuse(v1alpha1.ReasonSourceNotFound, "volumes cannot be made from a volume or a "+
			"snapshot yet")
	}

	if err := r.checkRecord(); err != nil {
		return err
	}

	r.SizeBytes = roundUp(r.SizeBytes)
	if r.SizeBytes < minimumRaw {
		return &TooSmallError{FSType: "a volume", Size: r.SizeBytes, Minimum: minimumRaw}
	}

	return nil
}

// checkRecord refuses a request that does not fit into a volume's record,
// before anything is made. It leaves more room than the volume's life adds to
// its record (a growth, an adoption).
func (r *Request) checkRecord() error {
	r.Origin = r.Origin.Bound()
	const room = 64 << 10
	data, err := record.EncodeVolume(&record.Volume{
		ID: r.ID, Source: r.Source, Origin: r.Origin, MkfsOptions: r.MkfsOptions,
		MountOptions: r.MountOptions,
	})
	if err == nil && len(data) > record.MaxSize-room {
		err = &record.TooLargeError{What: record.VolumeFile, Size: len(data) + room}
	}

	return err
}

// checkFilesystem validates what is asked of the filesystem in a loop image.
func (r *Request) checkFilesystem(fstype string) error {
	t := filesystem.Type(fstype)
	if !t.Valid() {
		return refuse(v1alpha1.ReasonInvalidOptions, "fsType %q is none of %v", fstype,
			filesystem.Types())
	}
	if err := filesystem.ValidateMkfsOptions(t, r.MkfsOptions); err != nil {
		return refuse(v1alpha1.ReasonInvalidOptions, "mkfsOptions: %v", err)
	}
	if _, err := mount.ParseOptions(fstype, r.Allocation == record.AllocationThick,
		r.MountOptions); err != nil {
		return refuse(v1alpha1.ReasonInvalidOptions, "mountOptions: %v", err)
	}

	// What was made already may be as small as it is.
	if minimum := filesystem.MinimumSize(t); r.SizeBytes < minimum && !r.adopts() {
		return &TooSmallError{FSType: fstype, Size: r.SizeBytes, Minimum: minimum}
	}

	return nil
}

func roundUp(n int64) int64 { return (n + blockAlign - 1) / blockAlign * blockAlign }

// plan is how a requested volume will be made.
type plan struct {
	backend   string
	quotaKind string // directory backend; empty: no limit
	fstype    string // loop backend, Filesystem
}

// planFor decides the backend for a request on a pool with features f, or says
// why the pool cannot make it.
func planFor(r *Request, f disk.Features, defaultFS string) (plan, error) {
	quotaKind := ""
	switch {
	case f.ProjectQuota:
		quotaKind = record.QuotaProject
	case f.SimpleQuota:
		quotaKind = record.QuotaBtrfs
	}

	loop := func() (plan, error) {
		p := plan{backend: record.BackendLoop}
		if f.Unreserved && r.Allocation != record.AllocationThin && !r.adopts() {
			return p, refuseUnreserved()
		}
		if r.VolumeMode == record.ModeBlock {
			return p, nil
		}
		if p.fstype = r.FSType; p.fstype == "" {
			p.fstype = defaultFS
		}

		return p, r.checkFilesystem(p.fstype)
	}

	// Copy-on-write puts zeros elsewhere than where the data is. An image has
	// copy-on-write switched off.
	scrubs := r.Origin.Deletion.Scrub != scrubZero || f.Filesystem != "btrfs"
	switch {
	case !scrubs && r.Backend == record.BackendDirectory:
		return plan{}, refuse(v1alpha1.ReasonUnsupported, "scrub zero cannot be kept in a "+
			"directory on btrfs; use backend loop or auto, or scrub discard")
	case !scrubs:
		return loop()
	case r.Backend == record.BackendLoop || r.VolumeMode == record.ModeBlock ||
		r.Enforcement == record.EnforcementStrict:
		return loop()
	case r.Enforcement == record.EnforcementNone:
		return plan{backend: record.BackendDirectory}, nil
	case quotaKind != "" && !(r.Inodes > 0 && quotaKind == record.QuotaBtrfs):
		if r.Backend == "auto" && r.FSType != "" {
			// A request that names a filesystem wants one of its own.
			return loop()
		}
		return plan{backend: record.BackendDirectory, quotaKind: quotaKind}, nil
	case r.Backend == "auto":
		return loop()
	case quotaKind != "":
		return plan{}, refuse(v1alpha1.ReasonUnsupported,
			"btrfs cannot limit the number of inodes")
	default:
		return plan{}, refuse(v1alpha1.ReasonUnsupported, "%s", fmt.Sprintf(
			"the pool's filesystem (%s) does not enforce sizes of directories (%s); use backend "+
				"loop or auto, or enforcement none", f.Filesystem, f.NoQuotaBecause))
	}
}

// describe writes into a new volume's record what its backend heeds.
func (p *plan) describe(rec *record.Volume, r *Request) {
	setInodes(rec, r, *p)
	if p.backend != record.BackendLoop {
		return
	}
	rec.Allocation, rec.FSType = r.Allocation, p.fstype
	rec.MkfsOptions, rec.MountOptions = r.MkfsOptions, r.MountOptions
	rec.EverRaw = r.VolumeMode == record.ModeBlock
}

// UnlimitedInodes is Request.Inodes of a volume that may hold as many files as
// its pool's filesystem.
const UnlimitedInodes = -1

// setInodes notes in a new volume's record what limits its files. What is
// adopted has more than anybody foresaw: it is limited only where that was
// asked for.
func setInodes(rec *record.Volume, r *Request, p plan) {
	rec.Inodes = max(r.Inodes, 0)
	if r.Inodes == 0 && p.quotaKind == record.QuotaProject && !r.adopts() {
		rec.InodesBySize, rec.Inodes = true, backend.DefaultInodes(rec.SizeBytes)
	}
}

func refuseUnreserved() error {
	return refuse(v1alpha1.ReasonUnsupported,
		"the pool's filesystem does not take the room that is preallocated (as ZFS does not), "+
			"so a thick image would be a promise only; use allocation thin")
}

// Words of the class's parameter scrub.
const (
	scrubZero    = "zero"
	scrubDiscard = "discard"
)

// wants reports whether the request may be carved from the pool.
func (r *Request) wants(p *pool, node string) bool {
	if r.Pool != "" {
		return p.name() == r.Pool
	}
	return r.PoolSelector == nil || r.PoolSelector.Matches(labels.Set(PoolLabels(node, &p.cfg)))
}

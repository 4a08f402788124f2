package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// What CheckAdoption finds at a path.
const (
	FoundNothing   = "nothing"
	FoundDirectory = "directory"
	FoundImage     = "image" // a regular file
	FoundOther     = "other" // a link, a device, or nothing that could be looked at
)

// AdoptionReport says what adopting a path would mean. Sizes are bytes.
type AdoptionReport struct {
	Path string `json:"path"`
	Type string `json:"type"`
	// Pool is the pool the path lies in, and Directory where that is.
	Pool      string `json:"pool,omitempty"`
	Directory string `json:"directory,omitempty"`
	Found     string `json:"found"`
	// Filesystem, Label and UUID are what an image holds.
	Filesystem string `json:"filesystem,omitempty"`
	Label      string `json:"label,omitempty"`
	UUID       string `json:"uuid,omitempty"`
	// SizeBytes is an image's size, which becomes the volume's. UsedBytes is
	// what the data takes on the disk, Files how many files and directories
	// there are; Partly is true if counting ended early and there is more.
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	UsedBytes int64 `json:"usedBytes"`
	Files     int64 `json:"files,omitempty"`
	Partly    bool  `json:"partly,omitempty"`
	// Link is what the symbolic link at the path will say; <id> stands for the
	// volume's name.
	Link string `json:"link,omitempty"`
	// Mounts are where the data is mounted now. They may stay.
	Mounts []string `json:"mounts,omitempty"`
	// Problems are why it cannot be adopted as it is; empty if it can be.
	Problems []string `json:"problems,omitempty"`
}

// CheckAdoption looks at a path as an adoption would, and changes nothing.
// kind, volumeMode and enforcement are the API's words, empty for their
// defaults. It does not look whether the pool has room. An error means that
// something could not be examined; what speaks against the adoption is in the
// report.
func CheckAdoption(ctx context.Context, pools []config.Pool, name, kind, volumeMode,
	enforcement string) (AdoptionReport, error) {
	r := Request{
		ID:          "check",
		VolumeMode:  volumeMode,
		Enforcement: enforcement,
		SizeBytes:   1 << 62,
		Adopt:       &Adoption{Path: name, Type: kind},
	}
	report := AdoptionReport{Path: name, Type: kind, Found: FoundOther}
	if err := r.normalize(); err != nil {
		return report.with(err)
	}

	report.Type = r.Adopt.Type
	cfg, from, err := poolAbove(pools, name)
	if err != nil {
		return report.with(err)
	}

	report.Pool, report.Directory = cfg.Name, cfg.Path
	rec := &record.Volume{ID: "<id>", Backend: r.Backend, AdoptedFrom: from}
	report.Link = disk.LinkTarget(rec)
	root, _, err := disk.Open(&cfg, &disk.Expectation{})
	if err != nil {
		return report.with(err)
	}
	defer root.Close()

	e := &examination{
		adopt:       *r.Adopt,
		from:        from,
		pools:       pools,
		volumeMode:  r.VolumeMode,
		enforcement: r.Enforcement,
		enough:      countBudget,
	}
	e.ownerOf = func(uuid string) string { return ownerOnDisk(pools, uuid) }
	e.linkIn = func(from string) string { return linkOnDisk(cfg, from) }
	if e.features, err = disk.LookAtFeatures(root); err != nil {
		return report, err
	}
	if e.table, err = mount.Scan(); err != nil {
		return report, err
	}

	f, err := e.run(ctx, root)
	report.tell(f)
	for _, u := range e.uses {
		report.Mounts = append(report.Mounts, u.String())
	}

	if err == nil && e.adopt.isFile() {
		fstype := string(f.fs.Type)
		if f.there && fstype != "" {
			r.found, r.SizeBytes = f, f.stat.Size
			err = r.checkFilesystem(fstype)
		}
	}

	return report.with(err)
}

// tell fills in what was found.
func (report *AdoptionReport) tell(f *found) {
	if !f.there {
		report.Found = FoundNothing
		return
	}

	report.UsedBytes, report.Files, report.Partly = f.bytes, f.files, f.partly
	switch f.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		report.Found = FoundDirectory
	case unix.S_IFREG:
		report.Found = FoundImage
		report.SizeBytes = roundUp(f.stat.Size)
		report.Filesystem, report.Label, report.UUID = string(f.fs.Type), f.fs.Label, f.fs.UUID
	}
}

// with adds an error that speaks against the adoption to the report, and
// returns any other.
func (report AdoptionReport) with(err error) (AdoptionReport, error) {
	var offline *disk.OfflineError
	if _, refused := Reason(err); refused || errors.As(err, &offline) {
		report.Problems = append(report.Problems, err.Error())
		return report, nil
	}
	if err != nil {
		return report, fmt.Errorf("look at %s: %w", report.Path, err)
	}

	return report, nil
}

// linkOnDisk is linkIn without a running store.
func linkOnDisk(p config.Pool, from string) string {
	in, err := disk.Inspect(p.Path)
	if err != nil {
		return ""
	}

	for i := range in.Volumes {
		if isBelow(&in.Volumes[i], from) {
			return in.Volumes[i].ID
		}
	}

	return ""
}

// ownerOnDisk is ownerOfFilesystem without a running store.
func ownerOnDisk(pools []config.Pool, uuid string) string {
	for _, p := range pools {
		in, err := disk.Inspect(p.Path)
		if err != nil {
			continue // offline: its volumes are not in use
		}
		if i := slices.IndexFunc(in.Volumes, func(v record.Volume) bool {
			return v.FSUUID == uuid
		}); i >= 0 {
			return "volume " + in.Volumes[i].ID
		}

		for _, t := range in.Trash {
			if t.Volume != nil && t.Volume.FSUUID == uuid {
				return "volume " + path.Join(record.TrashDir, t.Entry)
			}
		}
	}

	return mountedBtrfs(uuid)
}

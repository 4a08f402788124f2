// Package listing puts what is written on a node's disks into the words of
// `quarry ls -o json`. It needs no agent and no cluster, reads only, and shows
// disks of other nodes and clusters like any other: whoever brings a cluster
// back (`quarry recover`) knows of each volume what is here, and no more.
//
// The JSON is stable: fields are added, and what is there keeps its name and
// its meaning.
package listing

import (
	"errors"
	"math"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// PoolListing is what there is at the path of a pool.
type PoolListing struct {
	// Name is the pool's name in the configuration, which its Pool object is
	// named by. Where it was made it may have had another.
	Name string `json:"name"`
	Path string `json:"path"`
	// Labels are those of the configuration.
	Labels map[string]string `json:"labels,omitempty"`
	// UID and ClusterID are the same as in Identity.
	UID       string `json:"uid"`
	ClusterID string `json:"clusterID,omitempty"`
	// Identity is what pool.json says: also where the pool was made, and under
	// which name. Nil where there is no pool to be read.
	Identity *record.Pool    `json:"identity,omitempty"`
	Volumes  []VolumeListing `json:"volumes"`
	Trash    []TrashListing  `json:"trash,omitempty"`
	// Unfinished are volumes that are being made at this moment, or that a
	// crash left; they never were volumes.
	Unfinished []string `json:"unfinished,omitempty"`
	// Broken says by name which directories cannot be read as volumes or as
	// trash, and why.
	Broken map[string]string `json:"broken,omitempty"`
	// Error says why the pool could not be read, and Reason the same in one
	// word, as in the condition Ready of its Pool object.
	Error  string `json:"error,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// VolumeListing is a volume: its record, and the path that a local
// PersistentVolume of it has.
type VolumeListing struct {
	record.Volume
	Path string `json:"path"`
}

// TrashListing is a deleted volume: what deleting it was to mean, and since
// when.
type TrashListing struct {
	Entry string `json:"entry"`
	record.Trash
	// RemainingSeconds is how long it is still kept; 0: its space is being
	// freed, and there is no way back.
	RemainingSeconds int64 `json:"remainingSeconds"`
	// Volume is nil for an attempt that never became a volume.
	Volume *record.Volume `json:"volume,omitempty"`
}

// Read reads the pools, each by itself: what cannot be read of one is in its
// Error and keeps nothing back of the others. deviceDir is where the links to
// the devices of Block volumes are.
func Read(pools []config.Pool, deviceDir string) []PoolListing {
	out := make([]PoolListing, 0, len(pools))
	for i := range pools {
		out = append(out, read(&pools[i], deviceDir))
	}
	return out
}

func read(p *config.Pool, deviceDir string) PoolListing {
	l := PoolListing{Name: p.Name, Path: p.Path, Labels: p.Labels, Volumes: []VolumeListing{}}
	in, err := disk.Inspect(p.Path)
	if err != nil {
		l.Error = err.Error()
		if offline, ok := errors.AsType[*disk.OfflineError](err); ok {
			l.Error, l.Reason = offline.Err.Error(), offline.Reason
		}
	}

	if in == nil {
		return l
	}

	l.UID, l.ClusterID, l.Identity, l.Unfinished = in.Identity.UID, in.Identity.ClusterID,
		&in.Identity, in.Unfinished
	for i := range in.Volumes {
		v := &in.Volumes[i]
		l.Volumes = append(l.Volumes, VolumeListing{Volume: *v,
			Path: disk.PathOf(v, p.Path, deviceDir)})
	}

	for _, t := range in.Trash {
		l.Trash = append(l.Trash, TrashListing{Entry: t.Entry, Trash: t.Trash, Volume: t.Volume,
			RemainingSeconds: seconds(t.Remaining)})
	}

	for name, err := range in.Broken {
		if l.Broken == nil {
			l.Broken = map[string]string{}
		}
		l.Broken[name] = err.Error()
	}

	return l
}

// seconds rounds up: what is kept for half a second more is not being freed
// yet.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

package disk

import (
	"path/filepath"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// DeviceDir is where links to the devices of Block volumes are. It must be on a
// filesystem that a reboot empties, so that a link never outlives the loop
// device it was made for.
const DeviceDir = "/run/quarry/dev"

// PathOf is what a local PersistentVolume of a volume points at: a directory
// below the pool's, or for Block the link in devices to its device.
func PathOf(rec *record.Volume, pool, devices string) string {
	switch {
	case rec.VolumeMode == record.ModeBlock:
		return filepath.Join(devices, rec.ID)
	case rec.Backend == record.BackendLoop:
		return filepath.Join(pool, rec.ID, record.MountDir, record.DataDir)
	default:
		return filepath.Join(pool, rec.ID, record.DataDir)
	}
}

// DataName is the name of a volume's data in the volume's directory: its image,
// or the directory that its user sees.
func DataName(rec *record.Volume) string {
	if rec.Backend == record.BackendLoop {
		return record.ImageFile
	}
	return record.DataDir
}

package store

import (
	"context"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// recordSize reports a record that an earlier version wrote without a bound. It
// is read and the volume is served, but nothing like it is written any more.
func (at *place) recordSize() {
	st, err := at.dir.Stat(record.VolumeFile)
	if err != nil || st.Size <= record.MaxSize {
		return
	}
	at.repairable(SeverityWarning, "write it again without the labels that are not kept any more",
		func(_ context.Context, at *place) error { return writeVolume(at.dir, at.rec) },
		"its record has %d bytes, larger than what is written now (%d)", st.Size, record.MaxSize)
}

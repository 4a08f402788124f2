package verify

import (
	"context"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// adoption looks at the link of an adopted volume. unfinished: its adoption is
// not, and nothing else of it can hold.
func (at *place) adoption() (unfinished bool) {
	if at.rec.Adopting != "" {
		unmoved, err := disk.IsUnmoved(at.root.Dir, at.rec)
		switch {
		case err != nil:
			at.error("how far its adoption is: %v", err)
		case unmoved:
			at.find(SeverityNote, at.pool, at.rec.ID,
				"an adoption that has moved nothing, under way or left by a crash; "+
					"the agent clears it away at its next start")
		default:
			at.repairable(SeverityError, "finish it", finishFound,
				"the adoption of %s is not finished", at.rec.AdoptedFrom)
		}
		return true
	}
	if at.rec.AdoptedFrom == "" {
		return false
	}
	err := disk.AtOldPath(at.root, at.rec, func(_ *disk.OldPath, state disk.LinkState) error {
		switch state {
		case disk.LinkMissing:
			at.repairable(SeverityWarning, "make the link",
				func(_ context.Context, at *place) error {
					return at.view.EnsureLink(at.root, at.rec)
				},
				"the link at %s, where its data was before it was adopted, is gone",
				at.rec.AdoptedFrom)
		case disk.LinkTaken:
			at.find(SeverityWarning, at.pool, at.rec.ID,
				"what is at %s, where its data was before it was adopted, is not its link",
				at.rec.AdoptedFrom)
		}
		return nil
	})
	if err != nil {
		at.error("the link at %s: %v", at.rec.AdoptedFrom, err)
	}
	return false
}

// finishFound is the repair of an adoption that is not finished.
func finishFound(ctx context.Context, at *place) error {
	return at.view.FinishAdoption(ctx, at.pool.name(), at.opened())
}

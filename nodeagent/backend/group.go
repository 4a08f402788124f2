package backend

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// What a directory volume on btrfs has beyond a limit: the groups that its
// subvolumes are charged to.

// checkGroup proves that the limit of a volume on btrfs is in force, and puts
// it back where it was lost: with the whole group, if quotas were switched off
// and on again. Of usage that is not counted since then it says so each time,
// as an *EnforcementError: nothing can have it counted.
func checkGroup(r *disk.Root, data *os.File, rec *record.Volume) (repaired bool, err error) {
	fs, group := r.File(), uint32(rec.QuotaID)
	have, there, err := btrfs.GetGroup(fs, group)
	if err != nil {
		return false, err
	}
	id, err := btrfs.ID(data)
	if err != nil {
		return false, err
	}
	if !there {
		if err := remakeGroup(fs, id, rec); err != nil {
			return false, err
		}
		repaired = true
	} else if have.Limit != uint64(rec.SizeBytes) {
		if err := SetLimit(r, rec, rec.SizeBytes); err != nil {
			return false, err
		}
		repaired = true
	}
	forgotten, err := btrfs.Forgotten(fs, id)
	if err == nil && forgotten {
		err = &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonUncounted,
			Detail: "the quotas of its filesystem were switched off and on again, and what " +
				"was written to it before is not counted; its limit holds for what was written " +
				"since. Copy the data into a new volume to have it counted"}
	}
	return repaired, err
}

// remakeGroup makes the group of a volume again and puts the volume's subvolume
// into it; those inside follow when strays are looked for.
func remakeGroup(fs *os.File, id uint64, rec *record.Volume) error {
	mode, err := btrfs.QuotaMode(fs)
	if err != nil {
		return err
	}
	if mode != btrfs.ModeSimple {
		return fmt.Errorf("its qgroup 1/%d is gone: the quotas of its filesystem are %s, "+
			"and have to be simple quotas (`btrfs quota enable --simple`)", rec.QuotaID, mode)
	}
	group := uint32(rec.QuotaID)
	if err := btrfs.CreateGroup(fs, group); err != nil {
		return err
	}
	if err := btrfs.SetLimit(fs, group, uint64(rec.SizeBytes)); err != nil {
		return err
	}
	return btrfs.AddMember(fs, id, group)
}

// ReturnSubvolumes has what lies in the volume charged to the volume alone, and
// what does not lie in it to somebody else, for a slice from the cursor on. It
// says that it had to.
func ReturnSubvolumes(r *disk.Root, data *os.File, rec *record.Volume, at *btrfs.Cursor,
	within time.Duration) error {
	id, err := btrfs.ID(data)
	if err != nil {
		return err
	}
	group := uint32(rec.QuotaID)
	strays, foreign, err := btrfs.Charged(r.File(), id, group, at, within)
	if err != nil {
		return err
	}
	if len(strays) == 0 && len(foreign) == 0 {
		return nil
	}
	lost := &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonEscaped,
		Detail: StrayText(strays, foreign) + "; each is charged to its own volume again"}
	if err := ChargeRightly(r.File(), group, strays, foreign); err != nil {
		lost.Detail = fmt.Sprintf("%s, and that could not be put right: %v",
			StrayText(strays, foreign), err)
	}
	return lost
}

func ChargeRightly(fs *os.File, group uint32, strays []btrfs.Stray, foreign []uint64) error {
	var errs []error
	for _, s := range strays {
		errs = append(errs, btrfs.PutBack(fs, s, group))
	}
	for _, f := range foreign {
		errs = append(errs, btrfs.Expel(fs, f, group))
	}
	return errors.Join(errs...)
}

// StrayText says what was found, for people.
func StrayText(strays []btrfs.Stray, foreign []uint64) string {
	outside, shared := 0, 0
	for _, s := range strays {
		if s.Outside {
			outside++
		} else {
			shared++
		}
	}
	text := ""
	for _, part := range []struct {
		n    int
		what string
	}{
		{outside, "subvolumes in it were outside of its group"},
		{shared, "subvolumes in it were charged to other groups as well"},
		{len(foreign), "subvolumes that are not in it were charged to it"},
	} {
		if part.n == 0 {
			continue
		}
		if text != "" {
			text += ", and "
		}
		text += fmt.Sprintf("%d %s", part.n, part.what)
	}
	return text
}

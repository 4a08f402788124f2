package store

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestHowLongTrashIsKept says how long an entry of the trash is kept: by the
// time that was seen to pass, whatever the clock says. It needs no disk.
func TestHowLongTrashIsKept(t *testing.T) {
	const hour = int64(3600)
	now := time.Now()
	kept := record.Deletion{OnDelete: "trash", RetentionSeconds: 24 * hour}
	cases := []struct {
		name  string
		entry string
		note  record.Trash
		since time.Time
		want  time.Duration
	}{
		{"just deleted", "v@1", record.Trash{DeletedAt: now, Deletion: kept}, now, 24 * time.Hour},
		{"watched for an hour", "v@1", record.Trash{DeletedAt: now, Deletion: kept}, now.Add(-time.Hour),
			23 * time.Hour},
		{"noted before a restart", "v@1", record.Trash{DeletedAt: now, Deletion: kept, ElapsedSeconds: 20 * hour}, now,
			4 * time.Hour},
		{"the clock jumped ten years ahead", "v@1", record.Trash{DeletedAt: now.AddDate(-10, 0, 0), Deletion: kept},
			now, 24 * time.Hour},
		{"the clock was ahead when it was deleted", "v@1", record.Trash{DeletedAt: now.AddDate(10, 0, 0),
			Deletion: kept}, now.Add(-time.Hour), 23 * time.Hour},
		{"the clock stood at zero", "v@0", record.Trash{Deletion: kept}, now, 24 * time.Hour},
		{"passed", "v@1", record.Trash{DeletedAt: now, Deletion: kept, ElapsedSeconds: 24 * hour}, now, 0},
		{"to be purged", "v@1", record.Trash{DeletedAt: now, Deletion: kept, Purge: true}, now, 0},
		{"being freed", "v@1.freeing", record.Trash{DeletedAt: now, Deletion: kept}, now, 0},
		{"not to be kept", "v@1", record.Trash{DeletedAt: now, Deletion: record.Deletion{OnDelete: "purge",
			RetentionSeconds: hour}}, now, 0},
		{"a negative retention", "v@1", record.Trash{DeletedAt: now, Deletion: record.Deletion{OnDelete: "trash",
			RetentionSeconds: -5}}, now, 0},
		{"more than time has", "v@1", record.Trash{DeletedAt: now, Deletion: record.Deletion{OnDelete: "trash",
			RetentionSeconds: math.MaxInt64}}, now,
			disk.Seconds(math.MaxInt64)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := &trashed{entry: c.entry, trash: c.note, since: c.since}
			require.Equal(t, c.want, max(e.remaining(now), 0))
			require.GreaterOrEqual(t, e.left(), max(e.remaining(now), 0), "the disk never says less")
		})
	}
}

// TestLaterDeletionIsLater deletes one id twice while the clock goes back in
// between: the second is the later one, which is restored.
func TestLaterDeletionIsLater(t *testing.T) {
	s := New(Options{})
	p := &pool{}
	first := &trashed{pool: p, id: "v", entry: "v@1", trash: record.Trash{DeletedAt: time.Now().UTC().AddDate(1, 0, 0)}}
	s.trash[first.key()] = first
	require.True(t, s.deletedNow("v").After(first.trash.DeletedAt))
	require.False(t, s.deletedNow("another").After(time.Now()))
}

// TestOldestGoesFirst says which entries of the trash give way, and that none
// does where that is not enough.
func TestOldestGoesFirst(t *testing.T) {
	now := time.Now()
	entry := func(id string, bytes int64, age time.Duration, deleted time.Time) *trashed {
		return &trashed{id: id, rec: &record.Volume{Backend: record.BackendLoop, SizeBytes: bytes},
			since: now.Add(-age),
			trash: record.Trash{DeletedAt: deleted}}
	}
	young := entry("young", 10, time.Hour, now)
	old := entry("old", 20, 3*time.Hour, now.AddDate(1, 0, 0)) // by a clock that was wrong
	older := entry("older", 30, 3*time.Hour, now.AddDate(0, 0, -1))
	cases := []struct {
		name       string
		room, need int64
		want       []string
		enough     bool
	}{
		{"there is room", 100, 100, nil, true},
		{"one is enough", 0, 30, []string{"older"}, true},
		{"two are", 0, 31, []string{"older", "old"}, true},
		{"all are", 0, 60, []string{"older", "old", "young"}, true},
		{"all are not", 0, 61, nil, false},
		{"more was promised than there is", -10, 50, []string{"older", "old", "young"}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var ids []string
			oldest, enough := oldestEnough([]*trashed{young, old, older}, c.room, c.need, now)
			for _, v := range oldest {
				ids = append(ids, v.id)
			}
			require.Equal(t, c.want, ids)
			require.Equal(t, c.enough, enough)
		})
	}
}

package quota

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// pages is a journal in memory.
type pages struct {
	noted     []Bare
	forgotten int
	off       error
}

func (p *pages) Note(b Bare) error { p.noted = append(p.noted, b); return nil }
func (p *pages) Off() error        { return p.off }
func (p *pages) Forget() error     { p.forgotten++; return nil }

// Who ends while the flags of an inode are off is followed by one that puts
// them back, whatever the inode is called by then; one that is gone needs
// nothing.
func TestFlagsArePutBack(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: limit})
		for _, flag := range []string{"+i", "+a"} {
			file := filepath.Join(volume.Name(), "file")
			require.NoError(t, os.WriteFile(file, nil, 0o644))
			require.NoError(t, SetProject(open(t, file), testID+1, false))
			testroot.Run(t, "chattr", flag, file)
			ended := errors.New("ended")
			journal := pages{off: ended}
			_, err := Return(t.Context(), volume, testID, new(Cursor), time.Hour, &journal)
			if len(journal.noted) == 0 {
				require.NoError(t, err, "the kernel allows it with the flag here")
				testroot.Run(t, "chattr", "-ia", file)
				require.NoError(t, os.Remove(file))
				continue
			}
			require.ErrorIs(t, err, ended)
			require.Zero(t, journal.forgotten)
			require.False(t, isImmutable(int(open(t, file).Fd())))

			// Into a directory that hands its project on only what is of that
			// project can be moved, so the name is changed outside of one.
			moved := filepath.Join(volume.Name(), "moved")
			require.NoError(t, SetProject(volume, testID, false))
			require.NoError(t, os.Rename(file, moved))
			require.NoError(t, SetProject(volume, testID, true))
			require.NoError(t, PutBack(fs, journal.noted[0]))
			require.True(t, isImmutable(int(open(t, moved).Fd())))
			require.NoError(t, PutBack(fs, journal.noted[0]), "a second call changes nothing")

			next := pages{}
			r, err := Return(t.Context(), volume, testID, new(Cursor), time.Hour, &next)
			require.NoError(t, err)
			require.EqualValues(t, 1, r.Changed)
			require.True(t, isImmutable(int(open(t, moved).Fd())))
			testroot.Run(t, "chattr", "-ia", moved)
			require.NoError(t, os.Remove(moved))
			require.NoError(t, PutBack(fs, next.noted[0]))
			require.Error(t, PutBack(fs, Bare{Flags: xflagProjInherit}))
		}
	})
}

package quota

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// actions are what only project quotas let a tenant try.
var actions = map[string]tenant.Action{
	// project FILE ID
	"project": func(args []string) (int64, error) {
		id, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil {
			return 0, err
		}
		return 0, setXattr(args[0], func(a *fsxattr) { a.ProjectID = uint32(id) })
	},
	"disinherit": func(args []string) (int64, error) {
		return 0, setXattr(args[0], func(a *fsxattr) { a.XFlags &^= xflagProjInherit })
	},
}

const (
	limit  = 16 << 20
	tooBig = "40000000"
)

var everybody = []tenant.Who{tenant.Root, tenant.ContainerRoot, tenant.User, tenant.UserNamespaced}

// binds says whom a limit holds against. On ext4 CAP_SYS_RESOURCE is above it
// (ignore_hardlimit in fs/quota/dquot.c).
func binds(t *testing.T, fs *os.File, who tenant.Who) bool {
	s, err := Probe(fs)
	require.NoError(t, err)
	return s.Filesystem == "xfs" || who != tenant.Root
}

func TestBytesAreLimited(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: limit})
		for _, who := range everybody {
			for _, how := range []string{"write", "direct", "fallocate"} {
				t.Run(who.String()+"/"+how, func(t *testing.T) {
					r := tenant.Run(t, who, volume, how, "file", tooBig)
					_, usage, err := GetLimits(fs, testID)
					require.NoError(t, err)
					t.Logf("%d of %d bytes used", usage.Bytes, limit)
					if binds(t, fs, who) {
						require.Contains(t, []unix.Errno{unix.EDQUOT, unix.ENOSPC}, r.Errno)
						require.LessOrEqual(t, usage.Bytes, uint64(limit))
						require.LessOrEqual(t, r.Done, int64(limit))
					} else {
						require.Zero(t, r.Errno)
						require.Greater(t, usage.Bytes, uint64(limit))
					}
					require.NoError(t, os.Remove(filepath.Join(volume.Name(), "file")))
				})
			}
		}
	})
}

func TestInodesAreLimited(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Inodes: 51}) // the volume's directory is one
		for _, who := range everybody {
			t.Run(who.String(), func(t *testing.T) {
				r := tenant.Run(t, who, volume, "files", "f", "100")
				if binds(t, fs, who) {
					require.Contains(t, []unix.Errno{unix.EDQUOT, unix.ENOSPC}, r.Errno)
					require.Equal(t, int64(50), r.Done)
				} else {
					require.Equal(t, tenant.Result{Done: 100}, r)
				}
				for i := range r.Done {
					require.NoError(t, os.Remove(filepath.Join(volume.Name(), "f"+strconv.FormatInt(i, 10))))
				}
			})
		}
	})
}

// A limit can be changed while the volume is in use, also below what is used.
func TestLimitGrowsAndShrinks(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: limit})
		require.NotZero(t, tenant.Run(t, tenant.User, volume, "write", "file", tooBig).Errno)
		require.NoError(t, SetLimits(fs, testID, Limits{Bytes: 2 * limit}))
		require.Zero(t, tenant.Run(t, tenant.User, volume, "write", "second", "8000000").Errno)
		require.NoError(t, SetLimits(fs, testID, Limits{Bytes: limit / 2}))
		require.NotZero(t, tenant.Run(t, tenant.User, volume, "write", "third", "1000000").Errno)
		require.FileExists(t, filepath.Join(volume.Name(), "second"), "nothing is lost")
		var st unix.Statfs_t
		require.NoError(t, unix.Fstatfs(int(volume.Fd()), &st))
		require.Zero(t, st.Bavail, "statfs below zero is zero")
	})
}

// In a user namespace of its own a tenant's files stay in their project
// (fileattr_set_prepare in fs/ioctl.c).
func TestProjectIsKeptInAUserNamespace(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: limit})
		require.Zero(t, tenant.Run(t, tenant.UserNamespaced, volume, "write", "file", "1000000").Errno)
		require.Zero(t, tenant.Run(t, tenant.UserNamespaced, volume, "mkdir", "dir").Errno)
		for _, attempt := range [][]string{{"project", "file", "0"}, {"disinherit", "dir"}} {
			r := tenant.Run(t, tenant.UserNamespaced, volume, attempt[0], attempt[1:]...)
			require.Equal(t, unix.EINVAL, r.Errno, "%v", attempt)
		}
		r, err := Check(t.Context(), volume, testID, new(Cursor), 0)
		require.NoError(t, err)
		require.Empty(t, r.Strays)
	})
}

// What is charged to another volume, or to none, is given back, immutable or
// not, and nothing else is touched.
func TestReturn(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: limit})
		for _, name := range []string{"own", "others", "nobodys", "immutable"} {
			require.NoError(t, os.WriteFile(filepath.Join(volume.Name(), name), make([]byte, 1<<20), 0o644))
		}
		require.NoError(t, os.Mkdir(filepath.Join(volume.Name(), "dir"), 0o755))
		require.NoError(t, SetProject(open(t, filepath.Join(volume.Name(), "others")), testID+1, false))
		require.NoError(t, SetProject(open(t, filepath.Join(volume.Name(), "nobodys")), 0, false))
		require.NoError(t, SetProject(open(t, filepath.Join(volume.Name(), "immutable")), testID+1, false))
		require.NoError(t, SetProject(open(t, filepath.Join(volume.Name(), "dir")), testID, false))
		testroot.Run(t, "chattr", "+i", filepath.Join(volume.Name(), "immutable"))
		t.Cleanup(func() { testroot.Run(t, "chattr", "-i", filepath.Join(volume.Name(), "immutable")) })
		_, others, err := GetLimits(fs, testID+1)
		require.NoError(t, err)
		require.GreaterOrEqual(t, others.Bytes, uint64(2<<20), "another volume pays")

		var at Cursor
		var journal pages
		r, err := Return(t.Context(), volume, testID, &at, time.Hour, &journal)
		require.NoError(t, err)
		// xfs changes the project of an immutable file; ext4 wants the flag off.
		require.LessOrEqual(t, len(journal.noted), 1)
		require.Equal(t, len(journal.noted), journal.forgotten)
		require.True(t, at.Done())
		require.Len(t, r.Strays, 4)
		require.EqualValues(t, 4, r.Changed+r.Immutable)
		require.Zero(t, r.Immutable)
		require.True(t, isImmutable(int(open(t, filepath.Join(volume.Name(), "immutable")).Fd())), "it is as it was")
		_, others, err = GetLimits(fs, testID+1)
		require.NoError(t, err)
		require.Zero(t, others, "it is given back")
		_, own, err := GetLimits(fs, testID)
		require.NoError(t, err)
		require.GreaterOrEqual(t, own.Bytes, uint64(4<<20))
		r, err = Return(t.Context(), volume, testID, new(Cursor), time.Hour, &journal)
		require.NoError(t, err)
		require.Empty(t, r.Strays)
		require.Zero(t, r.Changed)
	})
}

// Renames and links do not carry an inode over the border of a project.
func TestBorderOfTheProject(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: limit})
		other := filepath.Join(volume.Name(), "other")
		require.NoError(t, os.Mkdir(other, 0o777))
		require.NoError(t, SetProject(open(t, other), testID+1, true))
		require.NoError(t, os.WriteFile(filepath.Join(other, "file"), nil, 0o666))
		require.Equal(t, unix.EXDEV, tenant.Run(t, tenant.Root, volume, "rename", "other/file", "file").Errno)
		require.Equal(t, unix.EXDEV, tenant.Run(t, tenant.Root, volume, "link", "other/file", "file").Errno)
	})
}

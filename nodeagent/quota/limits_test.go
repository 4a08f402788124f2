package quota

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

func TestProbeInForce(t *testing.T) {
	for _, fstype := range filesystems {
		t.Run(fstype, func(t *testing.T) {
			fs := newFilesystem(t, fstype, "prjquota")
			// What a crash in the middle of a probe leaves.
			require.NoError(t, SetLimits(fs, ProbeID, probeLimits))
			s, err := Probe(fs)
			require.NoError(t, err)
			require.Equal(t, Support{Filesystem: fstype, Project: true}, s)
			for p, err := range Projects(fs) {
				require.NoError(t, err)
				t.Errorf("the probe left %+v", p)
			}
		})
	}
}

// A quota that is off or only counted must not be taken for one in force.
func TestProbeNotInForce(t *testing.T) {
	for _, c := range []struct{ fstype, option, reason string }{
		{"ext4", "defaults", "accounted and not enforced"}, // the features quota and project alone
		{"xfs", "defaults", "is off"},
		{"xfs", "pqnoenforce", "accounted and not enforced"},
		{"xfs", "uquota", "is off"},
	} {
		t.Run(c.fstype+"/"+c.option, func(t *testing.T) {
			newFilesystem(t, c.fstype, "prjquota") // or skip
			fs := newFilesystem(t, c.fstype, c.option)
			s, err := Probe(fs)
			require.NoError(t, err)
			require.Equal(t, c.fstype, s.Filesystem)
			require.False(t, s.Project)
			require.Contains(t, s.Reason, c.reason)
		})
	}
}

func TestProbeExt4WithoutTheFeature(t *testing.T) {
	testroot.RequireRoot(t)
	fs := open(t, testroot.NewFilesystem(t, "ext4", 64*testroot.MiB))
	s, err := Probe(fs)
	require.NoError(t, err)
	require.False(t, s.Project)
	require.NotEmpty(t, s.Reason)
	t.Log(s.Reason)
}

func TestProbeOtherFilesystems(t *testing.T) {
	s, err := Probe(open(t, "/proc"))
	require.NoError(t, err)
	require.Equal(t, Support{Reason: "project quotas are for ext4 and xfs"}, s)
}

func TestLimitsAreReadBack(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		l, u, err := GetLimits(fs, testID)
		require.NoError(t, err)
		require.Zero(t, l)
		require.Zero(t, u)
		require.NoError(t, Clear(fs, testID), "an id never used")
		for _, c := range []struct{ set, got Limits }{
			{Limits{Bytes: 1, Inodes: 1}, Limits{Bytes: 4096, Inodes: 1}},
			{Limits{Bytes: 4096}, Limits{Bytes: 4096}},
			{Limits{Bytes: 1_000_000_000}, Limits{Bytes: 244_141 * 4096}},
			{Limits{Bytes: 1 << 30, Inodes: 1 << 20}, Limits{Bytes: 1 << 30, Inodes: 1 << 20}},
			{Limits{Bytes: 1<<30 + 1}, Limits{Bytes: 1<<30 + 4096}},
			{Limits{Bytes: 16 << 40}, Limits{Bytes: 16 << 40}},
			{Limits{Inodes: 7}, Limits{Inodes: 7}},
		} {
			require.NoError(t, SetLimits(fs, testID, c.set), "%+v", c.set)
			require.NoError(t, SetLimits(fs, testID, c.set), "a second call changes nothing")
			l, _, err := GetLimits(fs, testID)
			require.NoError(t, err)
			require.Equal(t, c.got, l)
		}
		free, err := Free(fs, testID)
		require.NoError(t, err)
		require.False(t, free)
		require.NoError(t, Clear(fs, testID))
		free, err = Free(fs, testID)
		require.NoError(t, err)
		require.True(t, free)
	})
}

func TestProjectsListsWhatIsUsedOrLimited(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		newVolume(t, fs, Limits{Bytes: miB})
		require.NoError(t, SetLimits(fs, testID+5, Limits{Inodes: 3}))
		require.NoError(t, SetLimits(fs, testID+6, Limits{Inodes: 3}))
		require.NoError(t, Clear(fs, testID+6))
		require.NoError(t, SetLimits(fs, 77, Limits{Bytes: miB})) // an administrator's
		require.NoError(t, SetLimits(fs, 1<<31+1, Limits{Bytes: miB}))
		var ids []uint32
		for p, err := range Projects(fs) {
			require.NoError(t, err)
			ids = append(ids, p.ID)
			if p.ID == testID {
				require.Equal(t, miB, p.Limits.Bytes)
				require.Equal(t, uint64(1), p.Usage.Inodes)
			}
		}
		require.Equal(t, []uint32{77, testID, testID + 5, 1<<31 + 1}, ids)
	})
}

// A process asks with statfs(2) how large its disk is, and sees the volume's
// size.
func TestStatfsShowsTheVolume(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		volume := newVolume(t, fs, Limits{Bytes: 32 * miB, Inodes: 100})
		require.NoError(t, os.WriteFile(filepath.Join(volume.Name(), "file"), make([]byte, 8*miB), 0o644))
		require.NoError(t, unix.Syncfs(int(fs.Fd())))
		var st unix.Statfs_t
		require.NoError(t, unix.Fstatfs(int(volume.Fd()), &st))
		require.Equal(t, 32*miB, st.Blocks*uint64(st.Bsize))
		require.Equal(t, 24*miB, (st.Bfree+1)*uint64(st.Bsize)/miB*miB)
		require.Equal(t, uint64(100), st.Files)
		require.Equal(t, uint64(98), st.Ffree)
	})
}

func TestSetProjectKeepsOtherAttributes(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		path := filepath.Join(fs.Name(), "dir")
		require.NoError(t, os.Mkdir(path, 0o755))
		testroot.Run(t, "chattr", "+A", path)
		dir := open(t, path)
		for _, inherit := range []bool{true, false, true} {
			require.NoError(t, SetProject(dir, testID, inherit))
			id, got, err := GetProject(dir)
			require.NoError(t, err)
			require.Equal(t, testID, id)
			require.Equal(t, inherit, got)
			require.Regexp(t, `^\S*A`, testroot.Run(t, "lsattr", "-d", path))
		}
		require.NoError(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o644))
		id, _, err := GetProject(open(t, filepath.Join(path, "file")))
		require.NoError(t, err)
		require.Equal(t, testID, id, "inherited")
	})
}

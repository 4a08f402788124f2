package btrfs

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
)

// actions are what only a btrfs lets a tenant try.
var actions = map[string]tenant.Action{
	// subvolume NAME
	"subvolume": func(args []string) (int64, error) {
		return 0, tenantCreate(args[0], iocSubvolCreateV2, 0)
	},
	// snapshot SOURCE NAME rw|ro
	"snapshot": func(args []string) (int64, error) {
		src, err := os.Open(args[0])
		if err != nil {
			return 0, err
		}
		defer src.Close()
		var flags uint64
		if args[2] == "ro" {
			flags = subvolReadOnly
		}
		return int64(src.Fd()), tenantCreate(args[1], iocSnapCreateV2, flags, src.Fd())
	},
	// leave SUBVOLUME: takes it out of testGroup
	"leave": func(args []string) (int64, error) {
		id, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return 0, err
		}
		assign := struct{ Add, Child, Parent uint64 }{0, id, qgroupID(testGroup)}
		return 0, tenant.Ioctl(".", iocQgroupAssign, unsafe.Pointer(&assign))
	},
	"unlimit": func([]string) (int64, error) {
		args := struct {
			ID    uint64
			Limit qgroupLimit
		}{qgroupID(testGroup), qgroupLimit{Flags: limitMaxRfer, MaxRfer: ^uint64(0)}}
		return 0, tenant.Ioctl(".", iocQgroupLimit, unsafe.Pointer(&args))
	},
	"disable": func([]string) (int64, error) {
		args := struct{ Command, Status uint64 }{Command: 2}
		return 0, tenant.Ioctl(".", iocQuotaCtl, unsafe.Pointer(&args))
	},
}

// tenantCreate is what any process may ask of the kernel.
func tenantCreate(path string, request uintptr, flags uint64, src ...uintptr) error {
	args := &volArgs{Flags: flags}
	if len(src) > 0 {
		args.FD = int64(src[0])
	}
	copy(args.Name[:], filepath.Base(path))
	return tenant.Ioctl(filepath.Dir(path), request, unsafe.Pointer(args))
}

const (
	limit  = 32 * 1 << 20
	tooBig = "100000000"
)

// Every way of writing past the limit ends at it, for everybody.
func TestLimitHolds(t *testing.T) {
	for _, who := range []tenant.Who{tenant.Root, tenant.ContainerRoot, tenant.User, tenant.UserNamespaced} {
		for _, how := range []string{"write", "direct", "fallocate"} {
			t.Run(who.String()+"/"+how, func(t *testing.T) {
				fs := newSimple(t)
				volume := newVolume(t, fs, limit)
				r := tenant.Run(t, who, volume, how, "file", tooBig)
				require.Equal(t, unix.EDQUOT, r.Errno)
				require.LessOrEqual(t, r.Done, int64(limit))
				requireWithin(t, fs, limit)
				// A full volume can be emptied, and used again.
				require.Zero(t, tenant.Run(t, who, volume, "remove", "file").Errno)
				require.NoError(t, Sync(fs))
				require.Zero(t, tenant.Run(t, who, volume, "write", "again", "10000000").Errno)
			})
		}
	}
}

// There is no limit on inodes, but their metadata is charged as space.
func TestFilesAreChargedAsSpace(t *testing.T) {
	fs := newSimple(t)
	volume := newVolume(t, fs, 4*miB)
	r := tenant.Run(t, tenant.User, volume, "files", "f", "100000")
	require.Equal(t, unix.EDQUOT, r.Errno)
	require.Positive(t, r.Done)
	requireWithin(t, fs, 4*miB)
}

// A limit can be changed while the volume is in use, also below what is used.
func TestLimitGrowsAndShrinks(t *testing.T) {
	fs := newSimple(t)
	volume := newVolume(t, fs, limit)
	require.Equal(t, unix.EDQUOT, tenant.Run(t, tenant.User, volume, "write", "file", tooBig).Errno)
	require.NoError(t, SetLimit(fs, testGroup, 2*limit))
	require.Zero(t, tenant.Run(t, tenant.User, volume, "write", "second", "16000000").Errno)
	require.NoError(t, SetLimit(fs, testGroup, limit/2))
	require.Equal(t, unix.EDQUOT, tenant.Run(t, tenant.User, volume, "write", "third", "16000000").Errno)
	require.FileExists(t, filepath.Join(volume.Name(), "second"), "nothing is lost")
}

// What a tenant makes inside counts with the volume.
func TestNestedSubvolumesCount(t *testing.T) {
	fs := newSimple(t)
	volume := newVolume(t, fs, limit)
	id, err := ID(volume)
	require.NoError(t, err)
	for _, step := range [][]string{
		{"subvolume", "nested"},
		{"subvolume", "nested/deeper"},
		{"snapshot", "nested", "snapshot", "rw"},
	} {
		require.Zero(t, tenant.Run(t, tenant.User, volume, step[0], step[1:]...).Errno, "%v", step)
	}
	strays, err := Strays(fs, id, testGroup)
	require.NoError(t, err)
	require.Empty(t, strays)
	r := tenant.Run(t, tenant.User, volume, "write", "nested/deeper/file", "20000000")
	require.Zero(t, r.Errno)
	r = tenant.Run(t, tenant.User, volume, "write", "snapshot/file", tooBig)
	require.Equal(t, unix.EDQUOT, r.Errno)
	require.Less(t, r.Done, int64(limit-20000000))
	requireWithin(t, fs, limit)
}

// Quota is not a tenant's to change by the ioctls made for that.
func TestTenantCannotChangeQuota(t *testing.T) {
	for _, who := range []tenant.Who{tenant.User, tenant.UserNamespaced} {
		t.Run(who.String(), func(t *testing.T) {
			fs := newSimple(t)
			volume := newVolume(t, fs, limit)
			id, err := ID(volume)
			require.NoError(t, err)
			for _, action := range []string{"leave", "unlimit", "disable"} {
				r := tenant.Run(t, who, volume, action, strconv.FormatUint(id, 10))
				require.Equal(t, unix.EPERM, r.Errno, action)
			}
			require.Equal(t, unix.EDQUOT, tenant.Run(t, who, volume, "write", "file", tooBig).Errno)
		})
	}
}

// requireWithin requires the volume's usage to be within its limit.
func requireWithin(t *testing.T, fs *os.File, limit uint64) {
	t.Helper()
	require.NoError(t, Sync(fs))
	g, exists, err := GetGroup(fs, testGroup)
	require.NoError(t, err)
	require.True(t, exists)
	t.Logf("%d of %d bytes used", g.Usage, limit)
	require.LessOrEqual(t, g.Usage, limit)
}

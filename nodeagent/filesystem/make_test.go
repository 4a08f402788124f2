package filesystem_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

var lastUUID atomic.Int64

// newUUID is different each time and in each process, as btrfs wants it.
func newUUID() string {
	return fmt.Sprintf("%08x-0000-4000-8000-%012x", os.Getpid(), lastUUID.Add(1))
}

// newDevice puts a loop device over the image and opens it for reading and
// writing.
func newDevice(t *testing.T, image *os.File, blockSize int) *os.File {
	t.Helper()
	path := testroot.NewLoop(t, image.Name(), "--sector-size", strconv.Itoa(blockSize), "--direct-io=on")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func makeOn(t *testing.T, device *os.File, opts filesystem.MakeOptions) filesystem.Info {
	t.Helper()
	if opts.UUID == "" {
		opts.UUID = newUUID()
	}
	require.NoError(t, filesystem.Make(t.Context(), device, opts))
	info, err := filesystem.Identify(device)
	require.NoError(t, err)
	require.Equal(t, opts.Type, info.Type)
	require.Equal(t, opts.UUID, info.UUID)
	require.Equal(t, opts.Label, info.Label)
	require.True(t, info.Clean)
	return info
}

func mountDevice(t *testing.T, device *os.File, args ...string) string {
	t.Helper()
	target := t.TempDir()
	testroot.Mount(t, device.Name(), target, args...)
	return target
}

func TestMake(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		for _, blockSize := range []int{512, 4096} {
			for _, zeroed := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/zeroed=%t", fstype, blockSize, zeroed), func(t *testing.T) {
					device := newDevice(t, testroot.NewImage(t, testroot.GiB), blockSize)
					info := makeOn(t, device, filesystem.MakeOptions{Type: fstype, Label: "a label", Zeroed: zeroed})
					require.InDelta(t, testroot.GiB, info.SizeBytes, float64(testroot.MiB))
					require.EqualValues(t, 4096, info.BlockSize)
					require.Equal(t, info.UUID+"\n", testroot.Run(t, "blkid", "-p", "-o", "value", "-s", "UUID",
						device.Name()))
					target := mountDevice(t, device)
					require.NoError(t, os.WriteFile(target+"/file", []byte("x"), 0o600))
					repaired, err := filesystem.Check(t.Context(), device, filesystem.CheckOptions{})
					require.NoError(t, err)
					require.False(t, repaired)
				})
			}
		}
	}
}

// Directly in an image, without a loop device.
func TestMakeInImage(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		t.Run(string(fstype), func(t *testing.T) {
			image := testroot.NewImage(t, testroot.GiB)
			makeOn(t, image, filesystem.MakeOptions{Type: fstype, Zeroed: true})
			require.EqualValues(t, testroot.GiB, size(t, image))
			mountDevice(t, newDevice(t, image, 512))
		})
	}
}

// What has anything on it is never formatted.
func TestMakeRefusesData(t *testing.T) {
	testroot.RequireRoot(t)
	contents := map[string]func(t *testing.T, image *os.File){
		"data in front": func(t *testing.T, image *os.File) { writeAt(t, image, "hello", 12345) },
		"data at the end": func(t *testing.T, image *os.File) {
			writeAt(t, image, "hello", size(t, image)-5)
		},
		"swap":      func(t *testing.T, image *os.File) { testroot.Run(t, "mkswap", image.Name()) },
		"partition": func(t *testing.T, image *os.File) { writeAt(t, image, "\x55\xaa", 510) },
		"a damaged ext4": func(t *testing.T, image *os.File) {
			testroot.Mkfs(t, "ext4", image.Name())
			writeAt(t, image, "garbage", 1024)
		},
	}
	for _, fstype := range testroot.Filesystems() {
		contents[fstype] = func(t *testing.T, image *os.File) { testroot.Mkfs(t, fstype, image.Name()) }
	}
	for name, fill := range contents {
		t.Run(name, func(t *testing.T) {
			image := testroot.NewImage(t, 320*testroot.MiB)
			fill(t, image)
			before, allocated := bothEnds(t, image), testroot.AllocatedBytes(t, image)
			for _, fstype := range filesystem.Types() {
				err := filesystem.Make(t.Context(), image, filesystem.MakeOptions{Type: fstype, UUID: newUUID()})
				var formatted *filesystem.AlreadyFormattedError
				require.ErrorAs(t, err, &formatted)
			}
			require.True(t, bytes.Equal(before, bothEnds(t, image)), "not a byte was changed")
			require.Equal(t, allocated, testroot.AllocatedBytes(t, image))
		})
	}
}

func TestMakeRefusesOptions(t *testing.T) {
	image := testroot.NewImageIn(t, t.TempDir(), testroot.MiB)
	for name, opts := range map[string]filesystem.MakeOptions{
		"no type":       {UUID: newUUID()},
		"another type":  {Type: "zfs", UUID: newUUID()},
		"no UUID":       {Type: filesystem.Ext4},
		"a bad UUID":    {Type: filesystem.Ext4, UUID: "random"},
		"a long label":  {Type: filesystem.XFS, UUID: newUUID(), Label: "thirteen byte"},
		"a label -f":    {Type: filesystem.XFS, UUID: newUUID(), Label: "-f"},
		"an option":     {Type: filesystem.XFS, UUID: newUUID(), ExtraArgs: []string{"-f"}},
		"another place": {Type: filesystem.Ext4, UUID: newUUID(), ExtraArgs: []string{"/dev/sda"}},
	} {
		require.Error(t, filesystem.Make(t.Context(), image, opts), name)
	}
	var small *filesystem.TooSmallError
	err := filesystem.Make(t.Context(), image, filesystem.MakeOptions{Type: filesystem.XFS, UUID: newUUID()})
	require.ErrorAs(t, err, &small)
	require.EqualValues(t, 300*testroot.MiB, small.Minimum)
	require.ErrorIs(t, filesystem.CheckBlank(image), nil)
}

func TestMakeCancelled(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.GiB)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := filesystem.Make(ctx, image, filesystem.MakeOptions{Type: filesystem.Ext4, UUID: newUUID()})
	require.ErrorIs(t, err, context.Canceled)
}

// A reserved image stays reserved, on a device that would take discards.
func TestMakeDoesNotDiscard(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		t.Run(string(fstype), func(t *testing.T) {
			image := testroot.NewThickImage(t, 320*testroot.MiB)
			before := testroot.AllocatedBytes(t, image)
			makeOn(t, newDevice(t, image, 4096), filesystem.MakeOptions{Type: fstype, Zeroed: true})
			require.GreaterOrEqual(t, testroot.AllocatedBytes(t, image), before)
		})
	}
}

// A new image is told so, and then next to nothing has to be written.
func TestMakeWritesLittle(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		t.Run(string(fstype), func(t *testing.T) {
			image := testroot.NewImage(t, 10*testroot.GiB)
			makeOn(t, newDevice(t, image, 4096), filesystem.MakeOptions{Type: fstype, Zeroed: true})
			most := 8 * testroot.MiB
			if fstype == filesystem.XFS { // its log is written
				most = 80 * testroot.MiB
			}
			require.Less(t, testroot.AllocatedBytes(t, image), most)
		})
	}
}

// The features that an ext4 has are exactly those that Linux 5.14 knows,
// whatever the installed mke2fs likes.
func TestExt4Features(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.GiB)
	makeOn(t, image, filesystem.MakeOptions{Type: filesystem.Ext4, Zeroed: true,
		ExtraArgs: []string{"-O", "fast_commit"}})
	out := testroot.Run(t, "dumpe2fs", "-h", image.Name())
	fields := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.TrimSpace(value)
	}
	require.ElementsMatch(t, []string{
		"has_journal", "ext_attr", "resize_inode", "dir_index", "fast_commit", "filetype", "extent", "64bit", "flex_bg",
		"sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
	}, strings.Fields(fields["Filesystem features"]))
	require.Equal(t, "0", fields["Reserved block count"])
}

func TestXFSFeatures(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.GiB)
	makeOn(t, image, filesystem.MakeOptions{Type: filesystem.XFS})
	out := testroot.Run(t, "xfs_db", "-r", "-c", "version", image.Name())
	require.Contains(t, out, "V5")
	require.Contains(t, out, "REFLINK")
	require.Contains(t, out, "BIGTIME")
	for _, unknown := range []string{"NREXT64", "PARENT", "EXCHANGE", "METADIR"} {
		require.NotContains(t, out, unknown)
	}
}

// Options of a StorageClass reach mkfs, and take the place of ours.
func TestMakeExtraArgs(t *testing.T) {
	testroot.RequireRoot(t)
	t.Run("ext4", func(t *testing.T) {
		image := testroot.NewImage(t, testroot.GiB)
		makeOn(t, image, filesystem.MakeOptions{Type: filesystem.Ext4, ExtraArgs: []string{"-i", "1048576", "-m", "1",
			"-E", "stride=16,stripe_width=32", "-J", "size=8"}})
		out := testroot.Run(t, "dumpe2fs", "-h", image.Name())
		require.Regexp(t, `Inode count: +1024\n`, out)
		require.Regexp(t, `Reserved block count: +2621\n`, out)
		require.Regexp(t, `RAID stride: +16\n`, out)
		require.Regexp(t, `(Total j|J)ournal size: +8M\n`, out)
	})
	t.Run("ext4 inodes", func(t *testing.T) {
		image := testroot.NewImage(t, testroot.GiB)
		makeOn(t, image, filesystem.MakeOptions{Type: filesystem.Ext4, Inodes: 4096})
		require.Regexp(t, `Inode count: +4096\n`, testroot.Run(t, "dumpe2fs", "-h", image.Name()))
	})
	t.Run("xfs", func(t *testing.T) {
		image := testroot.NewImage(t, testroot.GiB)
		makeOn(t, image, filesystem.MakeOptions{Type: filesystem.XFS, ExtraArgs: []string{"-d", "agcount=2", "-m",
			"reflink=0", "-i", "maxpct=50"}})
		out := testroot.Run(t, "xfs_db", "-r", "-c", "sb 0", "-c", "p agcount imax_pct", "-c", "version", image.Name())
		require.Contains(t, out, "agcount = 2")
		require.Contains(t, out, "imax_pct = 50")
		require.NotContains(t, out, "REFLINK")
	})
	t.Run("btrfs", func(t *testing.T) {
		image := testroot.NewImage(t, testroot.GiB)
		makeOn(t, image, filesystem.MakeOptions{Type: filesystem.Btrfs, ExtraArgs: []string{"--csum=xxhash", "-m",
			"single", "--nodesize", "32k"}})
		out := testroot.Run(t, "btrfs", "inspect-internal", "dump-super", image.Name())
		require.Regexp(t, `csum_type\s+1 \(xxhash64\)`, out)
		require.Regexp(t, `nodesize\s+32768`, out)
	})
}

// At the least size a filesystem can be made, mounted, and half of it written.
func TestMinimumSize(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		t.Run(string(fstype), func(t *testing.T) {
			least := filesystem.MinimumSize(fstype)
			device := newDevice(t, testroot.NewImage(t, least), 4096)
			makeOn(t, device, filesystem.MakeOptions{Type: fstype, Zeroed: true})
			target := mountDevice(t, device)
			f, err := os.Create(filepath.Join(target, "file"))
			require.NoError(t, err)
			defer f.Close()
			_, err = f.Write(make([]byte, least/2))
			require.NoError(t, err)
			require.NoError(t, f.Sync())
		})
	}
}

func writeAt(t *testing.T, f *os.File, content string, offset int64) {
	t.Helper()
	_, err := f.WriteAt([]byte(content), offset)
	require.NoError(t, err)
}

// bothEnds reads the first and the last 4 MiB.
func bothEnds(t *testing.T, f *os.File) []byte {
	t.Helper()
	content := make([]byte, 8*testroot.MiB)
	_, err := f.ReadAt(content[:4*testroot.MiB], 0)
	require.NoError(t, err)
	_, err = f.ReadAt(content[4*testroot.MiB:], size(t, f)-4*testroot.MiB)
	require.NoError(t, err)
	return content
}

func size(t *testing.T, f *os.File) int64 {
	t.Helper()
	n, err := f.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	return n
}

// syncfs puts on disk what is in a mounted filesystem.
func syncfs(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Syncfs(int(f.Fd())))
}

package filesystem_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

func TestIdentifyBlank(t *testing.T) {
	for _, size := range []int{0, 1, 512, 4096, 1 << 20, 3 << 20} {
		_, err := filesystem.Identify(bytes.NewReader(make([]byte, size)))
		require.ErrorIs(t, err, filesystem.ErrNone, size)
	}
}

func TestIdentifyUnknown(t *testing.T) {
	for signature, test := range map[string]struct {
		offset int
		magic  string
	}{
		"":                               {77777, "x"},
		"an encrypted volume (LUKS)":     {0, "LUKS\xba\xbe\x00\x02"},
		"an LVM physical volume":         {512, "LABELONE"},
		"swap space":                     {4086, "SWAPSPACE2"},
		"a partition table (GPT)":        {512, "EFI PART"},
		"a partition table (MBR) or FAT": {510, "\x55\xaa"},
		"ext2 or ext3":                   {1024 + 0x38, "\x53\xef"},
	} {
		disk := make([]byte, 1<<20)
		copy(disk[test.offset:], test.magic)
		_, err := filesystem.Identify(bytes.NewReader(disk))
		var unknown *filesystem.UnknownError
		require.ErrorAs(t, err, &unknown, signature)
		require.Equal(t, signature, unknown.Signature)
	}
}

// A device that cannot be read is an error, never blank.
func TestIdentifyUnreadable(t *testing.T) {
	_, err := filesystem.Identify(broken{})
	require.ErrorIs(t, err, errBroken)
	require.NotErrorIs(t, err, filesystem.ErrNone)
}

var errBroken = errors.New("input/output error")

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

// One flipped bit in a superblock is noticed, and a cut off one too.
func TestIdentifyCorrupt(t *testing.T) {
	testroot.RequireRoot(t) // mkfs is not everywhere
	for fstype, offset := range map[filesystem.Type]int64{
		filesystem.Ext4: 1024 + 0x78, filesystem.XFS: 108, filesystem.Btrfs: 64<<10 + 0x12b, // the labels
	} {
		t.Run(string(fstype), func(t *testing.T) {
			image := testroot.NewImage(t, 320*testroot.MiB)
			makeOn(t, image, filesystem.MakeOptions{Type: fstype})
			writeAt(t, image, "\x01", offset)
			_, err := filesystem.Identify(image)
			var corrupt *filesystem.CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, fstype, corrupt.Type)
			_, err = filesystem.Check(t.Context(), image, filesystem.CheckOptions{})
			var damaged *filesystem.DamagedError
			require.ErrorAs(t, err, &damaged)

			head := make([]byte, 128<<10)
			_, err = image.ReadAt(head, 0)
			require.NoError(t, err)
			for n := range len(head) / 256 {
				_, err := filesystem.Identify(bytes.NewReader(head[:n*256])) // never a panic
				require.Error(t, err)
			}
		})
	}
}

// Whatever is in an image, it is read without harm.
func FuzzIdentify(f *testing.F) {
	for _, magic := range []struct {
		offset int
		text   string
	}{{0, "XFSB"}, {64<<10 + 0x40, "_BHRfS_M"}, {1024 + 0x38, "\x53\xef"}} {
		disk := make([]byte, 68<<10)
		copy(disk[magic.offset:], magic.text)
		f.Add(disk)
	}
	f.Fuzz(func(t *testing.T, disk []byte) {
		info, err := filesystem.Identify(bytes.NewReader(disk))
		if err == nil && !info.Type.Valid() {
			t.Errorf("identified as %q", info.Type)
		}
	})
}

func TestIdentifyOthersFilesystems(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		image := testroot.NewImage(t, 320*testroot.MiB)
		testroot.Mkfs(t, fstype, image.Name())
		info, err := filesystem.Identify(image)
		require.NoError(t, err)
		require.EqualValues(t, fstype, info.Type)
		require.Equal(t, info.UUID+"\n", testroot.Run(t, "blkid", "-p", "-o", "value", "-s", "UUID", image.Name()))
	}
	for _, tool := range []string{"mkfs.ext2", "mkfs.ext3"} {
		image := testroot.NewImage(t, 32*testroot.MiB)
		testroot.Run(t, tool, "-q", "-F", image.Name())
		_, err := filesystem.Identify(image)
		require.ErrorContains(t, err, "ext2 or ext3")
	}
	_, err := filesystem.Identify(os.Stdin)
	require.Error(t, err)
}

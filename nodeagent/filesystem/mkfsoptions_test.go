package filesystem_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/option"
)

func TestValidateMkfsOptions(t *testing.T) {
	for _, test := range []struct {
		fstype  filesystem.Type
		options string
	}{
		{"ext4", ""},
		{"ext4", "-i 8192 -I 256 -b 4096 -m 1 -J size=64 -E stride=16,stripe_width=64 -O fast_commit,inline_data"},
		{"ext4", "-N 100000"}, {"ext4", "-T largefile"}, {"ext4", "-E packed_meta_blocks=1"},
		{"xfs", "-d agcount=4,su=64k,sw=2 -i size=1024,maxpct=10 -l size=64m -n size=8k -s size=4096 -m rmapbt=1"},
		{"btrfs", "--nodesize=16384 --csum xxhash -m single -O ^no-holes"},
	} {
		require.NoError(t, filesystem.ValidateMkfsOptions(test.fstype, strings.Fields(test.options)), test.options)
	}
}

func TestValidateMkfsOptionsRefuses(t *testing.T) {
	for _, test := range []struct {
		fstype           filesystem.Type
		options, nearest string
	}{
		{"ext4", "-F", ""}, {"ext4", "-U random", ""}, {"ext4", "-L x", ""},
		{"ext4", "-d /etc", ""}, {"ext4", "-z /tmp/undo", ""},
		{"ext4", "-J device=/dev/sda", ""}, {"ext4", "-l /etc/passwd", ""},
		{"ext4", "-E discard", ""}, {"ext4", "-E offset=4096", ""},
		{"ext4", "-e panic", ""}, {"ext4", "-O quota", ""},
		{"ext4", "-O orphan_file", ""}, {"ext4", "-O ^has_journal", ""},
		{"ext4", "-O fast_comit", "-O fast_commit"},
		{"ext4", "-E stripe_wdth=1", "-E stripe_width"}, {"ext4", "-i 1", ""}, {"ext4", "-i", ""},
		{"ext4", "/dev/sda", ""}, {"ext4", "-i 8192 /dev/sda", ""},
		{"ext4", "-I 128", ""}, {"ext4", "-i $(reboot)", ""},
		{"xfs", "-f", ""}, {"xfs", "-K", ""}, {"xfs", "-d file,name=/etc/passwd", ""},
		{"xfs", "-d name=/dev/sda", ""}, {"xfs", "-l logdev=/dev/sda", ""},
		{"xfs", "-r rtdev=/dev/sda", ""}, {"xfs", "-p /etc/passwd", ""},
		{"xfs", "-c options=/etc/passwd", ""}, {"xfs", "-m uuid=x", ""},
		{"xfs", "-i nrext64=1", ""}, {"xfs", "-m crc=0", ""}, {"xfs", "-d agcont=2", "-d agcount"},
		{"xfs", "-d su=/dev/sda", ""}, {"xfs", "-l size=1,2", ""},
		{"btrfs", "-f", ""}, {"btrfs", "--rootdir /etc", ""}, {"btrfs", "-r /etc", ""},
		{"btrfs", "--mixed", ""}, {"btrfs", "-m raid1", ""},
		{"btrfs", "--nodesze 4096", "--nodesize"}, {"btrfs", "-O block-group-tree", ""},
		{"btrfs", "--csum=md5", ""}, {"btrfs", "/dev/sdb", ""},
		{"zfs", "-f", ""},
	} {
		err := filesystem.ValidateMkfsOptions(test.fstype, strings.Fields(test.options))
		var refused *option.Error
		require.ErrorAs(t, err, &refused, "%s %s", test.fstype, test.options)
		require.Equal(t, test.nearest, refused.Nearest, "%s %s", test.fstype, test.options)
	}
}

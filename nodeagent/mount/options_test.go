package mount_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/option"
)

func TestParseOptions(t *testing.T) {
	for name, test := range map[string]struct {
		fstype string
		in     []string
		want   []string
	}{
		"nothing":    {"ext4", nil, []string{"nodev", "nosuid"}},
		"defaults":   {"ext4", []string{"defaults", ""}, []string{"nodev", "nosuid"}},
		"overridden": {"ext4", []string{"suid", "dev", "noexec"}, []string{"noexec"}},
		"joined and apart": {"xfs", []string{"noatime,inode64", "logbufs=8"}, []string{"noatime", "nodev", "nosuid",
			"inode64", "logbufs=8"}},
		"the last one wins": {"ext4", []string{"noatime", "strictatime"}, []string{"nodev", "nosuid",
			"strictatime"}},
		"relatime takes back": {"ext4", []string{"noatime", "relatime"}, []string{"nodev", "nosuid"}},
		"nodiratime adds": {"ext4", []string{"noatime", "nodiratime"}, []string{"noatime", "nodev",
			"nodiratime", "nosuid"}},
		"read-only": {"btrfs", []string{"ro"}, []string{"nodev", "nosuid", "ro"}},
		"of the filesystem": {"btrfs", []string{"compress=zstd:3", "autodefrag"}, []string{"nodev", "nosuid",
			"compress=zstd:3", "autodefrag"}},
		"of every filesystem": {"xfs", []string{"lazytime", "dirsync"}, []string{"nodev", "nosuid", "lazytime",
			"dirsync"}},
		"careful about errors": {"ext4", []string{"errors=remount-ro"}, []string{"nodev", "nosuid",
			"errors=remount-ro"}},
	} {
		t.Run(name, func(t *testing.T) {
			opts, err := mount.ParseOptions(test.fstype, true, test.in)
			require.NoError(t, err)
			if test.fstype == "ext4" && !slices.Contains(test.want, "errors=remount-ro") {
				test.want = append(test.want, "errors=remount-ro") // unasked
			}
			require.ElementsMatch(t, test.want, opts.Strings())
		})
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for _, test := range []struct{ fstype, option, nearest string }{
		{"ext4", "bind", ""}, {"ext4", "loop", ""}, {"ext4", "remount", ""}, {"ext4", "rshared", ""},
		{"ext4", "errors=panic", ""}, {"ext4", "errors=continue", ""}, {"ext4", "errors", ""},
		{"ext4", "data=writeback", ""}, {"ext4", "barrier=0", ""}, {"ext4", "nobarrier", ""}, {"ext4", "noload", ""},
		{"ext4", "journal_dev=8:1", ""}, {"ext4", "journal_path=/dev/sda", ""},
		{"ext4", "prjquota", ""}, {"ext4", "usrjquota=aquota.user", ""},
		{"ext4", "commit=0", ""}, {"ext4", "commit=x", ""}, {"ext4", "commit", ""}, {"ext4", "delalloc=1", ""},
		{"ext4", "context=system_u:object_r:tmp_t:s0", ""}, {"ext4", "nofail", ""},
		{"xfs", "logdev=/dev/sda", ""}, {"xfs", "rtdev=/dev/sda", ""},
		{"xfs", "norecovery", ""}, {"xfs", "nouuid", ""}, {"xfs", "pquota", ""},
		{"xfs", "allocsize=1tb", ""}, {"xfs", "logbufs=9", ""},
		{"btrfs", "subvol=/", ""}, {"btrfs", "subvolid=5", ""},
		{"btrfs", "device=/dev/sda", ""}, {"btrfs", "degraded", ""},
		{"btrfs", "rescue=all", ""}, {"btrfs", "fatal_errors=panic", ""}, {"btrfs", "compress=zip", ""},
		{"ext4", "noatme", "noatime"}, {"ext4", "comit=5", "commit"},
		{"xfs", "largio", "largeio"}, {"btrfs", "autodefrg", "autodefrag"},
		{"ext4", "inode64", ""}, {"ext4", "ro=1", "ro"}, {"ext4", "x-systemd.automount", ""},
		{"zfs", "ro", ""},
	} {
		t.Run(test.fstype+" "+test.option, func(t *testing.T) {
			_, err := mount.ParseOptions(test.fstype, false, []string{"noexec", test.option})
			var refused *option.Error
			require.ErrorAs(t, err, &refused)
			require.Contains(t, refused.Option, test.option)
			require.Equal(t, test.nearest, refused.Nearest)
		})
	}
}

// Discards give the space of a volume back, which a reserved one must not.
func TestParseOptionsDiscard(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		_, err := mount.ParseOptions(fstype, true, []string{"discard"})
		require.ErrorContains(t, err, "thick")
		_, err = mount.ParseOptions(fstype, false, []string{"discard"})
		require.NoError(t, err)
	}
}

package testbed

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseDisk(t *testing.T) {
	disk, err := ParseDisk("/volumes-fast=xfs:2Gi:prjquota,noatime")
	require.NoError(t, err)
	require.Equal(t, Disk{Path: "/volumes-fast", Filesystem: "xfs", Size: 2 << 30, MountOptions: "prjquota,noatime"},
		disk)

	for text, complaint := range map[string]string{
		"/volumes":              "want PATH=FILESYSTEM:SIZE",
		"/volumes=ext4":         "want PATH=FILESYSTEM:SIZE",
		"volumes=ext4:1Gi":      "absolute path",
		"/a/../b=ext4:1Gi":      "absolute path",
		"/volumes=zfs:1Gi":      "want ext4, xfs or btrfs",
		"/volumes=ext4:1G":      `size "1G"`,
		"/volumes=ext4:-1Gi":    "out of range",
		"/volumes=ext4:99999Pi": `size "99999Pi"`,
	} {
		_, err := ParseDisk(text)
		require.ErrorContains(t, err, complaint, text)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "512Ki": 512 << 10, "1Mi": 1 << 20, "3Ti": 3 << 40} {
		size, err := ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, size, text)
	}
	for _, text := range []string{"", "0", "Gi", "-5", "1.5Gi", "9000000000Gi"} {
		_, err := ParseSize(text)
		require.Error(t, err, text)
	}
}

func TestConfigDefaults(t *testing.T) {
	config, err := Config{}.withDefaults()
	require.NoError(t, err)
	require.Equal(t, Config{Nodes: 1, Pool: Disk{Path: "/volumes", Filesystem: "ext4", Size: 20 << 30}}, config)

	for complaint, config := range map[string]Config{
		"1 to 50":             {Nodes: 51},
		"two disks at /same":  {Pool: Disk{Path: "/same"}, ExtraPools: []Disk{{Path: "/same"}}},
		"no such node":        {Nodes: 2, HostnameLabels: map[string]string{"node3": "c"}},
		"ext4, xfs or btrfs":  {Pool: Disk{Filesystem: "ntfs"}},
		"want an absolute":    {ExtraPools: []Disk{{Path: "/"}}},
		"disk /volumes: size": {Pool: Disk{Size: -1}},
	} {
		_, err := config.withDefaults()
		require.ErrorContains(t, err, complaint)
	}
}

func TestNewBootID(t *testing.T) {
	require.Regexp(t, `^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`, newBootID())
	require.NotEqual(t, newBootID(), newBootID())
}

package mount

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBindFlags(t *testing.T) {
	o, others := BindFlags([]string{"defaults", "ro", "noexec", "relatime", "noatime", "data=journal", "suid", "dev",
		"nosuid", "exec"})
	require.True(t, o.ReadOnly)
	require.Equal(t, []string{"data=journal", "suid", "dev"}, others)
	// Of words that contradict each other the last one counts, but nothing that
	// the source's mount forbids is given back.
	require.Equal(t, uint64(unix.MOUNT_ATTR_NOATIME|unix.MOUNT_ATTR_NOSUID), o.attr)
	require.Equal(t, uint64(unix.MOUNT_ATTR__ATIME), o.clear)

	o, others = BindFlags([]string{"ro", "rw"})
	require.False(t, o.ReadOnly)
	require.Empty(t, others)
}

func TestConfine(t *testing.T) {
	const both = uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	for _, c := range []struct {
		words []string
		want  uint64
	}{
		{nil, both},
		{[]string{"noatime"}, both | unix.MOUNT_ATTR_NOATIME},
		{[]string{"suid"}, unix.MOUNT_ATTR_NODEV},
		{[]string{"dev"}, unix.MOUNT_ATTR_NOSUID},
		{[]string{"suid", "dev"}, 0},
		{[]string{"suid", "nosuid", "nodev", "dev"}, unix.MOUNT_ATTR_NOSUID},
	} {
		o, _ := BindFlags(c.words)
		require.Equal(t, c.want, o.Confine(c.words).attr, "%q", c.words)
	}
}

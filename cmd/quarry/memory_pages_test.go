package main

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCleanAreas(t *testing.T) {
	const smaps = `00400000-02100000 r-xp 00000000 fe:00 123    /bin/a program
Size:              29696 kB
Rss:                 100 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
02100000-04000000 r--p 01d00000 fe:00 123    /bin/a program
Rss:                  64 kB
Anonymous:             0 kB
04000000-04100000 rw-p 03c00000 fe:00 123    /bin/a program
Rss:                  64 kB
Anonymous:             0 kB
04100000-04200000 r--p 03d00000 fe:00 123    /bin/a program
Rss:                  64 kB
Anonymous:             4 kB
04200000-04300000 r--p 03d00000 fe:00 124    /bin/another
Rss:                  64 kB
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Rss:                 400 kB
Anonymous:           400 kB
c000400000-c000500000 r--p 00000000 00:00 0
Rss:                   0 kB
Anonymous:             0 kB
`
	found, err := cleanAreas(smaps, "/bin/a program")
	require.NoError(t, err)
	require.Equal(t, []area{{0x400000, 0x2100000, 100 << 10}, {0x2100000, 0x4000000, 64 << 10}},
		found)

	_, err = cleanAreas("0400000:0500000 r-xp 0 fe:00 123 /bin/a\nRss: 1 kB\nAnonymous: 0 kB\n",
		"/bin/a")
	require.Error(t, err)
}

// TestUnmapStart: a process goes on when the pages of its file were unmapped,
// with fewer of them. It is a process of its own, whose pages nobody else
// touches.
func TestUnmapStart(t *testing.T) {
	const inside = "QUARRY_TEST_UNMAP"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnmapStart$")
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	before := residentOfFiles(t)
	gone, err := unmapStart()
	require.NoError(t, err)
	require.Positive(t, gone)
	require.Less(t, residentOfFiles(t), before)
}

func residentOfFiles(t *testing.T) int64 {
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	m := regexp.MustCompile(`RssFile:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, m)
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	require.NoError(t, err)
	return kib << 10
}

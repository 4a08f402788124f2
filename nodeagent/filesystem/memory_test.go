package filesystem_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// A repair that is given too little memory is refused it, wherever it has come
// to, and that is told from a repair that failed; the next one, with more,
// comes to its end.
func TestRepairWithinMemory(t *testing.T) {
	from := t.TempDir()
	const inEach, directories = 70, 100 // for the tables that a repair keeps in memory
	for i := range directories {
		for j := range inEach {
			require.NoError(t, os.MkdirAll(filepath.Join(from, fmt.Sprint(i), fmt.Sprint(j)), 0o700))
		}
	}
	image := filepath.Join(t.TempDir(), "image")
	// Small blocks, for several groups, so that bitmaps are read in threads.
	testroot.Run(t, "mkfs.ext4", "-q", "-F", "-b", "1024", "-d", from, image, "192M")
	testroot.Run(t, "debugfs", "-w", "-R", "set_super_value state 2", image)

	check := func(memory uint64) (bool, error) {
		used := filepath.Join(t.TempDir(), "image")
		testroot.Run(t, "cp", "--sparse=always", image, used)
		f, err := os.OpenFile(used, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		return filesystem.Check(t.Context(), f, filesystem.CheckOptions{Memory: memory})
	}
	var ended, refused int
	for kib := uint64(1 << 10); kib <= 16<<10; kib += 512 {
		repaired, err := check(kib << 10)
		if damaged, ok := errors.AsType[*filesystem.DamagedError](err); ok {
			require.True(t, damaged.Unfinished, "%d KiB: %v", kib, err)
			require.Zero(t, ended, "%d KiB: less was enough", kib)
			refused++
			continue
		}
		require.NoError(t, err, "%d KiB", kib)
		require.True(t, repaired)
		ended++
	}
	require.NotZero(t, refused)
	require.NotZero(t, ended)
}

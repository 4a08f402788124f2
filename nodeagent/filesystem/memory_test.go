package filesystem_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// Each repair may take all of the memory that is left, so one waits for the
// other, or for as long as its caller does.
func TestOneRepairAtATime(t *testing.T) {
	damaged := func() *os.File {
		image := filepath.Join(t.TempDir(), "image")
		testroot.Run(t, "mkfs.ext4", "-q", "-F", image, "16M")
		testroot.Run(t, "debugfs", "-w", "-R", "set_super_value state 2", image)
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, f.Close()) })
		return f
	}
	one, two, three := damaged(), damaged(), damaged()
	began, second := make(chan struct{}), make(chan error, 1)
	repaired, err := filesystem.Check(t.Context(), one, filesystem.CheckOptions{Before: func() error {
		go func() {
			_, err := filesystem.Check(t.Context(), two, filesystem.CheckOptions{Before: func() error {
				close(began)
				return nil
			}})
			second <- err
		}()

		impatient, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := filesystem.Check(impatient, three, filesystem.CheckOptions{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "wait for the repair of another")

		select {
		case <-began:
			t.Error("two repairs at once")
		default:
		}
		return nil
	}})
	require.NoError(t, err)
	require.True(t, repaired)
	require.NoError(t, <-second)
}

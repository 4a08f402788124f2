package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCacheMakesOnce(t *testing.T) {
	source := t.TempDir()
	input := filepath.Join(source, "input")
	require.NoError(t, os.WriteFile(input, []byte("one"), 0o600))
	cache := &Cache{Dir: filepath.Join(t.TempDir(), "cache"), Progress: t.Logf}
	made := 0
	failure := errors.New("compiler says no")
	get := func(fail bool) (string, error) {
		return cache.get(t.Context(), artifact{
			name: "thing", key: newKey("flags").files(source, "*"),
			make: func(_ context.Context, dir string) error {
				made++
				require.NoError(t, os.WriteFile(filepath.Join(dir, "result"), nil, 0o600))
				if fail {
					return failure
				}
				return nil
			},
		})
	}
	_, err := get(true)
	require.ErrorIs(t, err, failure)
	first, err := get(false)
	require.NoError(t, err, "what a failure left is not in the way")
	again, err := get(false)
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.Equal(t, 2, made)

	require.NoError(t, os.WriteFile(input, []byte("two"), 0o600))
	second, err := get(false)
	require.NoError(t, err)
	require.NotEqual(t, first, second, "another input is another result")
	require.FileExists(t, filepath.Join(first, "result"))
}

func TestKeyNeedsItsFiles(t *testing.T) {
	_, err := newKey().files(t.TempDir(), "go.mod").sum()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestVersionsAreFound(t *testing.T) {
	source, err := SourceDir()
	require.NoError(t, err)
	version, err := moduleVersion(filepath.Join(source, "kube", "go.mod"), "k8s.io/kubernetes")
	require.NoError(t, err)
	require.Regexp(t, `^v1\.\d+\.\d+$`, version)
	_, err = moduleVersion(filepath.Join(source, "kube", "go.mod"), "example.com/none")
	require.ErrorContains(t, err, "does not require")
}

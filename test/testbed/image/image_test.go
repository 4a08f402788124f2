package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/quarry-storage/quarry/test/testbed/image"
	"github.com/stretchr/testify/require"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(program, []byte("#!"), 0o600))
	i := image.Image{
		Tags: []string{"localhost/a:1"},
		Files: []image.File{{Path: "/usr/bin/program", Source: program, Mode: 0o755},
			{Path: "/etc/passwd", Content: "root", Mode: 0o644}},
		Links:      []image.Link{{Path: "/bin/alias", Target: "/usr/bin/program"}},
		Entrypoint: []string{"/bin/alias"},
	}
	first, second := filepath.Join(dir, "1.tar"), filepath.Join(dir, "2.tar")
	require.NoError(t, i.WriteFile(first))
	require.NoError(t, i.WriteFile(second))
	content, err := os.ReadFile(first)
	require.NoError(t, err)
	again, err := os.ReadFile(second)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, again), "the same image is the same bytes")
	require.Len(t, glob(t, dir), 3, "no temporary file is left")

	archive := readTar(t, content)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	require.NoError(t, json.Unmarshal(archive["manifest.json"], &manifest))
	require.Len(t, manifest, 1)
	require.Equal(t, i.Tags, manifest[0].RepoTags)
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		Config struct{ Entrypoint []string }
	}
	require.NoError(t, json.Unmarshal(archive[manifest[0].Config], &config))
	require.Equal(t, i.Entrypoint, config.Config.Entrypoint)
	layer := archive[manifest[0].Layers[0]]
	digest := sha256.Sum256(layer)
	require.Equal(t, []string{"sha256:" + hex.EncodeToString(digest[:])}, config.RootFS.DiffIDs)

	files := readTar(t, layer)
	require.Equal(t, "#!", string(files["usr/bin/program"]))
	require.Equal(t, "root", string(files["etc/passwd"]))
	require.Contains(t, files, "usr/bin/", "parents are made")
	require.Contains(t, files, "bin/alias")
}

func TestWriteFileWithoutSource(t *testing.T) {
	dir := t.TempDir()
	i := image.Image{Files: []image.File{{Path: "/a", Source: filepath.Join(dir, "missing")}}}
	require.ErrorIs(t, i.WriteFile(filepath.Join(dir, "x.tar")), os.ErrNotExist)
	require.Empty(t, glob(t, dir))
}

func glob(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	return names
}

func readTar(t *testing.T, content []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for reader := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		require.NotContains(t, files, header.Name, "no entry comes twice")
		files[header.Name], err = io.ReadAll(reader)
		require.NoError(t, err)
	}
}

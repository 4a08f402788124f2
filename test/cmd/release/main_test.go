package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// small builds a program that stands for each of ours.
var small = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "small")
	out, err := exec.Command("go", "build", "-o", path, "../pause").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// scratch is a directory of the whole process.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "quarry-release-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// built returns a directory of programs for two platforms.
func built(t *testing.T) string {
	t.Helper()
	self, err := small()
	require.NoError(t, err)
	dir := t.TempDir()
	for _, p := range []string{"linux_amd64", "linux_arm64"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, p), 0o755))
		for _, program := range programs {
			require.NoError(t, os.Symlink(self, filepath.Join(dir, p, program)))
		}
	}
	return dir
}

func releaseOf(t *testing.T, dir string) *release {
	t.Helper()
	return &release{
		version: "0.1.0", commit: strings.Repeat("0123456789", 4), modified: time.Unix(1764417600, 0).UTC(),
		programs: dir, root: "../../..", out: t.TempDir(), url: "https://example.org/v0.1.0",
	}
}

func read(t *testing.T, r *release, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(r.out, name))
	require.NoError(t, err)
	return content
}

func TestRelease(t *testing.T) {
	dir := built(t)
	r, again := releaseOf(t, dir), releaseOf(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(r.out, "quarry-image_0.1.0_linux_amd64.tar"), []byte("an image"), 0o600))
	require.NoError(t, r.run())

	// Every file has its sum.
	sums := map[string]string{}
	for line := range strings.Lines(string(read(t, r, "SHA256SUMS"))) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sums[name] = sum
		require.Equal(t, sumOf(read(t, r, name)), sum, name)
	}
	require.Len(t, sums, 8+4)
	require.Contains(t, sums, "quarry-image_0.1.0_linux_amd64.tar")

	// The plugin's archives are those of the manifest.
	var m manifest
	require.NoError(t, yaml.UnmarshalStrict(read(t, r, "quarry.yaml"), &m))
	require.Len(t, m.Spec.Platforms, 2)
	for _, p := range m.Spec.Platforms {
		name := filepath.Base(p.URI)
		require.Equal(t, sums[name], p.SHA256)
		require.Equal(t, "https://example.org/v0.1.0/"+name, p.URI)
		require.Equal(t, "kubectl-quarry_0.1.0_linux_"+p.Selector["matchLabels"]["arch"]+".tar.gz", name)
	}
	z, err := gzip.NewReader(bytes.NewReader(read(t, r, "kubectl-quarry_0.1.0_linux_arm64.tar.gz")))
	require.NoError(t, err)
	archive := tar.NewReader(z)
	header, err := archive.Next()
	require.NoError(t, err)
	require.Equal(t, "kubectl-quarry", header.Name)
	require.Equal(t, int64(0o755), header.Mode)
	program, err := io.ReadAll(archive)
	require.NoError(t, err)
	self, err := os.ReadFile(filepath.Join(dir, "linux_arm64", "kubectl-quarry"))
	require.NoError(t, err)
	require.Equal(t, sumOf(self), sumOf(program))
	header, err = archive.Next()
	require.NoError(t, err)
	require.Equal(t, "LICENSE", header.Name)

	require.Contains(t, string(read(t, r, "quarry-crds_0.1.0.yaml")), "name: volumes.quarry.storage")

	// Made once more it is the same, byte for byte.
	require.NoError(t, os.WriteFile(filepath.Join(again.out, "quarry-image_0.1.0_linux_amd64.tar"), []byte("an image"), 0o600))
	require.NoError(t, again.run())
	require.Equal(t, string(read(t, r, "SHA256SUMS")), string(read(t, again, "SHA256SUMS")))
}

// TestBOM reads what this test was made of.
func TestBOM(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	text, err := releaseOf(t, "").bom("quarry", self, []byte("content"))
	require.NoError(t, err)
	var bom struct {
		BOMFormat string
		Metadata  struct {
			Timestamp string
			Component struct{ Name, Version string }
		}
		Components []struct{ Name, Version, Purl string }
	}
	require.NoError(t, json.Unmarshal(text, &bom))
	require.Equal(t, "CycloneDX", bom.BOMFormat)
	require.Equal(t, "2025-11-29T12:00:00Z", bom.Metadata.Timestamp)
	require.Equal(t, "quarry 0.1.0", bom.Metadata.Component.Name+" "+bom.Metadata.Component.Version)
	found := map[string]string{}
	for _, c := range bom.Components {
		require.Equal(t, "pkg:golang/"+c.Name+"@"+c.Version, c.Purl)
		found[c.Name] = c.Version
	}
	require.Contains(t, found, "helm.sh/helm/v3")
	require.Contains(t, found, "stdlib")
}

func TestReleaseRefuses(t *testing.T) {
	for what, change := range map[string]func(*release){
		"without changes beside it": func(r *release) { r.commit += "-dirty" },
		"made of a commit":          func(r *release) { r.commit = "" },
		"-time is needed":           func(r *release) { r.modified = time.Unix(0, 0) },
		"Chart.yaml says 0.1.0":     func(r *release) { r.version = "0.2.0" },
		"there is nothing in":       func(r *release) { r.programs = t.TempDir() },
	} {
		r := releaseOf(t, built(t))
		change(r)
		require.ErrorContains(t, r.run(), what)
	}
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// padding is what aligns a table; how much of it there is depends on the length
// of the test's directory.
var padding = regexp.MustCompile(` {2,}`)

// golden compares what a command printed with testdata/name. It is written by
// `go test ./cmd/quarry -run Golden -update`.
func golden(t *testing.T, name, printed string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if filepath.Ext(name) == ".txt" {
		printed = padding.ReplaceAllString(printed, "  ")
	}
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(printed), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), printed, file)
}

// run runs the program with arguments and returns what it printed to standard
// output, in which dir is called DIR.
func run(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newRootCommand()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return strings.ReplaceAll(out.String(), dir, "DIR"), err
}

// diskOf writes a pool's directory as an agent leaves it: with an image, a
// directory, a deleted volume, an attempt that a crash ended, and a directory
// whose record is damaged.
func diskOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	then := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	write := func(file string, text []byte, err error) {
		t.Helper()
		require.NoError(t, err)
		file = filepath.Join(dir, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, text, 0o600))
	}
	volume := func(in string, v record.Volume) {
		t.Helper()
		v.CreatedAt, v.Enforcement = then, record.EnforcementQuota
		if v.VolumeMode == "" {
			v.VolumeMode = record.ModeFilesystem
		}
		text, err := record.EncodeVolume(&v)
		write(filepath.Join(in, record.VolumeFile), text, err)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, in, record.DataDir), 0o755))
	}

	text, err := record.EncodePool(&record.Pool{
		UID: "4f6c2a34-6f0e-4c57-9f5e-0a4f6f6b0c11", CreatedAt: then,
		ClusterID: "cluster", Node: "node1", Name: "default",
	})
	write(filepath.Join(record.MetaDir, record.PoolFile), text, err)
	volume("pvc-1-1", record.Volume{
		ID: "pvc-1-1", Backend: record.BackendLoop, SizeBytes: 1 << 30,
		FSType: "ext4", Allocation: record.AllocationThick,
		Origin: record.Origin{ClaimNamespace: "shop", ClaimName: "data", StorageClass: "fast"},
	})
	volume("vol-2", record.Volume{
		ID: "vol-2", Backend: record.BackendDirectory, SizeBytes: 5 << 20,
	})
	volume("vol-6", record.Volume{
		ID: "vol-6", Backend: record.BackendLoop, SizeBytes: 64 << 20,
		VolumeMode: record.ModeBlock, Allocation: record.AllocationThick,
	})
	trash := filepath.Join(record.MetaDir, record.TrashDir, "pvc-3-1@1764417600")
	volume(trash, record.Volume{ID: "pvc-3-1", Backend: record.BackendDirectory, SizeBytes: 20 << 20})
	text, err = record.EncodeTrash(&record.Trash{DeletedAt: then, Deletion: record.Deletion{OnDelete: "purge"}})
	write(filepath.Join(trash, record.TrashedFile), text, err)
	write(filepath.Join(record.MetaDir, record.TmpDir, "pvc-4-1", "image"), nil, nil)
	write(filepath.Join("pvc-5-1", record.VolumeFile), []byte("{}"), nil)
	return dir
}

func TestGoldenList(t *testing.T) {
	dir := diskOf(t)
	printed, err := run(t, dir, "ls", "--pool", dir)
	require.NoError(t, err)
	golden(t, "ls.txt", printed)

	printed, err = run(t, dir, "ls", "--pool", dir, "-o", "json")
	require.NoError(t, err)
	golden(t, "ls.json", printed)
}

// TestGoldenNoPool is what commands print of a disk that is not there: the
// table is printed first, so that of several pools the others are seen.
func TestGoldenNoPool(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "volumes")
	printed, err := run(t, dir, "ls", "--pool", missing)
	require.ErrorContains(t, err, missing)
	golden(t, "ls-missing.txt", printed)

	printed, err = run(t, dir, "ls", "--pool", missing, "-o", "json")
	require.NoError(t, err)
	golden(t, "ls-missing.json", printed)

	printed, err = run(t, dir, "verify", "--pool", missing)
	require.ErrorIs(t, err, errFindings)
	golden(t, "verify-missing.txt", printed)

	printed, err = run(t, dir, "verify", "--pool", missing, "-o", "json")
	require.ErrorIs(t, err, errFindings)
	golden(t, "verify-missing.json", printed)
}

func TestGoldenWrongFlags(t *testing.T) {
	dir := t.TempDir()
	for _, command := range []string{"ls", "verify"} {
		_, err := run(t, dir, command, "--pool", dir, "-o", "yaml")
		require.EqualError(t, err, `--output "yaml" is neither table nor json`)
		_, err = run(t, dir, command, "--config", filepath.Join(dir, "none.yaml"))
		require.ErrorContains(t, err, "name pools by --pool where there is no configuration")
	}
}

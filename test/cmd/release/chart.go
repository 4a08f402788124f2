package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
)

// chart packs the chart as `helm package` does, but for the time of its files.
func (r *release) chart() error {
	dir := filepath.Join(r.root, "charts/quarry")
	var files []file
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		files = append(files, file{"quarry/" + filepath.ToSlash(name), 0o644, content})
		return err
	})
	if err != nil {
		return err
	}
	packed, err := r.pack(files)
	if err != nil {
		return err
	}

	// What Helm makes of it.
	c, err := loader.LoadArchive(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("the chart: %w", err)
	}
	if c.Metadata.Version != r.version || c.Metadata.AppVersion != r.version {
		return fmt.Errorf("charts/quarry/Chart.yaml says %s and %s, and the release is %s",
			c.Metadata.Version, c.Metadata.AppVersion, r.version)
	}
	return r.write(fmt.Sprintf("quarry-%s.tgz", r.version), packed)
}

// crds writes the custom resources in one file, for `kubectl apply`.
func (r *release) crds() error {
	paths, err := filepath.Glob(filepath.Join(r.root, "charts/quarry/crds/*.yaml"))
	if err != nil {
		return err
	}
	var all strings.Builder
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		all.WriteString("---\n" + strings.TrimPrefix(string(content), "---\n"))
	}
	return r.write(fmt.Sprintf("quarry-crds_%s.yaml", r.version), []byte(all.String()))
}

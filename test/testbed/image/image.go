// Package image writes container images as tarballs, without any daemon or
// registry: one layer, in the format of `docker save`, which `ctr images
// import` takes. The same content always gives the same image.
package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Image is what goes into the tarball.
type Image struct {
	Tags       []string // "registry/name:tag"
	Dirs       []string
	Files      []File
	Links      []Link
	Env        []string
	Entrypoint []string
	Cmd        []string
	User       string // "uid:gid"
}

// File is a file of the image: the content of Source on the machine if that is
// set, else Content.
type File struct {
	Path    string
	Source  string
	Content string
	Mode    os.FileMode
}

// Link is a symbolic link of the image.
type Link struct{ Path, Target string }

// modified is the time of every file: fixed, so that equal images are equal
// bytes.
var modified = time.Unix(1_700_000_000, 0).UTC()

// WriteFile writes the tarball.
func (i Image) WriteFile(name string) error {
	layer, err := os.CreateTemp(filepath.Dir(name), "layer-*")
	if err != nil {
		return fmt.Errorf("write image %s: %w", name, err)
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	hash := sha256.New()
	if err := i.writeLayer(io.MultiWriter(layer, hash)); err != nil {
		return fmt.Errorf("write the layer of image %s: %w", name, err)
	}
	digest := hex.EncodeToString(hash.Sum(nil))

	out, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	err = i.writeArchive(out, layer, digest)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write image %s: %w", name, err)
	}
	return nil
}

func (i Image) writeArchive(out io.Writer, layer *os.File, digest string) error {
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": modified,
		"config": map[string]any{"Env": i.Env, "Entrypoint": i.Entrypoint, "Cmd": i.Cmd, "User": i.User},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
	})
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(config)
	configName, layerName := hex.EncodeToString(configSum[:])+".json", digest+"/layer.tar"
	manifest, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": i.Tags,
		"Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	for _, entry := range []struct {
		name    string
		content io.Reader
		size    int64
	}{
		{configName, strings.NewReader(string(config)), int64(len(config))},
		{layerName, layer, size},
		{"manifest.json", strings.NewReader(string(manifest)), int64(len(manifest))},
	} {
		if err := archive.WriteHeader(&tar.Header{Name: entry.name, Mode: 0o644, Size: entry.size,
			ModTime: modified}); err != nil {
			return err
		}
		if _, err := io.Copy(archive, entry.content); err != nil {
			return err
		}
	}
	return archive.Close()
}

func (i Image) writeLayer(out io.Writer) error {
	layer := layerWriter{tar: tar.NewWriter(out), made: map[string]bool{}}
	for _, directory := range append([]string{"/tmp", "/etc", "/run", "/var"}, i.Dirs...) {
		if err := layer.directory(directory); err != nil {
			return err
		}
	}
	for _, file := range i.Files {
		if err := layer.file(file); err != nil {
			return err
		}
	}
	for _, link := range i.Links {
		if err := layer.directory(path.Dir(link.Path)); err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeSymlink, Name: relative(link.Path), Linkname: link.Target, Mode: 0o777,
			ModTime: modified}
		if err := layer.tar.WriteHeader(header); err != nil {
			return err
		}
	}
	return layer.tar.Close()
}

type layerWriter struct {
	tar  *tar.Writer
	made map[string]bool
}

// directory writes the directory and its parents, once.
func (w *layerWriter) directory(name string) error {
	name = relative(name)
	if name == "" || name == "." || w.made[name] {
		return nil
	}
	if err := w.directory(path.Dir(name)); err != nil {
		return err
	}
	w.made[name] = true
	mode := int64(0o755)
	if name == "tmp" {
		mode = 0o1777
	}
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: modified})
}

func (w *layerWriter) file(file File) error {
	if err := w.directory(path.Dir(file.Path)); err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: relative(file.Path), Mode: int64(file.Mode.Perm()),
		ModTime: modified}
	if file.Source == "" {
		header.Size = int64(len(file.Content))
		if err := w.tar.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.WriteString(w.tar, file.Content)
		return err
	}
	source, err := os.Open(file.Source)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	header.Size = info.Size()
	if err := w.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w.tar, source)
	return err
}

func relative(name string) string { return strings.Trim(name, "/") }

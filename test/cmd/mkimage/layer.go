package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is a file, link or directory of a layer. Its path is relative to the
// root, without a leading slash.
type entry struct {
	path    string
	mode    int64
	source  string // a file of this machine, or
	content string // a file's content, or
	link    string // a symbolic link's target; with none of them and dir: a directory
	dir     bool
}

// skeleton is what every program expects of a root filesystem.
func skeleton() []entry {
	return []entry{
		{path: "tmp", dir: true, mode: 0o1777},
		{path: "proc", dir: true, mode: 0o755},
		{path: "sys", dir: true, mode: 0o755},
		{path: "dev", dir: true, mode: 0o755},
		{path: "run", dir: true, mode: 0o755},
		{path: "var/tmp", dir: true, mode: 0o1777},
		// As in Debian since 12: one place for programs, one for libraries.
		{path: "bin", link: "usr/bin"},
		{path: "sbin", link: "usr/sbin"},
		{path: "lib", link: "usr/lib"},
		{path: "lib64", link: "usr/lib64"},
		{path: "usr/bin", dir: true, mode: 0o755},
		{path: "usr/lib64", dir: true, mode: 0o755},
		{path: "etc/passwd", content: "root:x:0:0:root:/:/quarry\nnonroot:x:65532:65532:nonroot:/:/quarry\n",
			mode: 0o644},
		{path: "etc/group", content: "root:x:0:\nnonroot:x:65532:\n", mode: 0o644},
		{path: "etc/nsswitch.conf", content: "passwd: files\ngroup: files\nhosts: files dns\n", mode: 0o644},
		// e2fsprogs asks it what is mounted.
		{path: "etc/mtab", link: "../proc/self/mounts"},
	}
}

// layer packs the entries, sorted, with their parent directories, owned by
// root, all of one time.
func layer(entries []entry) (v1.Layer, error) {
	all := map[string]entry{}
	for _, e := range entries {
		if _, twice := all[e.path]; twice && !e.dir {
			return nil, fmt.Errorf("/%s is in the layer twice", e.path)
		}
		all[e.path] = e
		for dir := path.Dir(e.path); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = entry{path: dir, dir: true, mode: 0o755}
			}
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := all[name].write(w); err != nil {
			return nil, fmt.Errorf("pack /%s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	})
}

func (e entry) write(w *tar.Writer) error {
	header := &tar.Header{Name: e.path, Mode: e.mode, ModTime: modified, Format: tar.FormatPAX}
	content := []byte(e.content)
	switch {
	case e.dir:
		header.Typeflag, header.Name = tar.TypeDir, e.path+"/"
	case e.link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
	default:
		header.Typeflag = tar.TypeReg
		if e.source != "" {
			var err error
			if content, err = os.ReadFile(e.source); err != nil {
				return err
			}
		}
		header.Size = int64(len(content))
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

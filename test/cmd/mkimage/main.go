// Command mkimage makes Quarry's container image as a tarball, without any
// daemon or registry: `ctr images import`, `docker load` and `podman load` take
// it.
//
//	mkimage -binary bin/quarry -tag quarry-storage/quarry:0.1.0 -o dist/quarry-image.tar
//
// The image has the layout of the Dockerfile at the top of the repository: the
// static program as /quarry, and the filesystem tools of this machine's
// packages (e2fsprogs, xfsprogs, btrfs-progs) with the shared libraries they
// need and nothing else: no shell, no package manager.
//
// The same binary and the same packages give the same bytes.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// modified is the time of every file and of the image: fixed, so that equal
// content is equal bytes.
var modified = time.Unix(1_700_000_000, 0).UTC()

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkimage: ")
	binary := flag.String("binary", "bin/quarry", "the static quarry `program`")
	tag := flag.String("tag", "quarry-storage/quarry:dev", "the image's `name:tag`")
	version := flag.String("version", "dev", "the `version` in the image's labels")
	out := flag.String("o", "dist/quarry-image.tar", "the tarball to write")
	flag.Parse()

	if err := run(*binary, *tag, *version, *out); err != nil {
		log.Fatal(err)
	}
}

func run(binary, tag, version, out string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	img, err := build(binary, version)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	// Written beside and renamed: half a tarball must not pass for an image.
	partial := out + ".partial"
	if err := tarball.WriteToFile(partial, ref, img); err != nil {
		return fmt.Errorf("write %s: %w", partial, err)
	}
	if err := os.Rename(partial, out); err != nil {
		return err
	}
	size, err := os.Stat(out)
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, %d KiB, %s\n", out, tag, size.Size()>>10, digest)
	return nil
}

// build makes two layers: the tools, which change with the distribution, and
// the program, which changes with every build.
func build(binary, version string) (v1.Image, error) {
	if err := requireStatic(binary); err != nil {
		return nil, err
	}
	tools, err := findTools()
	if err != nil {
		return nil, err
	}
	base, err := layer(append(skeleton(), tools...))
	if err != nil {
		return nil, err
	}
	program, err := layer([]entry{{path: "quarry", source: binary, mode: 0o755}})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, base, program)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Created = v1.Time{Time: modified}
	file.Config = v1.Config{
		Entrypoint: []string{"/quarry"},
		Env:        []string{"PATH=/usr/sbin:/usr/bin"},
		WorkingDir: "/",
		// Root, for the agent; the chart runs the controller as 65532.
		User: "0:0",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "quarry",
			"org.opencontainers.image.description": "Node-local persistent volumes for Kubernetes",
			"org.opencontainers.image.version":     version,
			"org.opencontainers.image.licenses":    "Apache-2.0",
		},
	}
	return mutate.ConfigFile(img, file)
}

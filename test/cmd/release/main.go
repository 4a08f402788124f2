// Command release makes of built programs what a release consists of:
//
//	release -version 0.1.0 -commit HASH -time 1764417600 -programs dist/release/programs -o dist/release
//
//	quarry_0.1.0_linux_amd64.tar.gz          the program, and the licence
//	quarry_0.1.0_linux_amd64.cdx.json        what it was made of (CycloneDX)
//	kubectl-quarry_0.1.0_linux_amd64.tar.gz  the plugin of kubectl
//	quarry-0.1.0.tgz                         the chart
//	quarry-crds_0.1.0.yaml                   its custom resources
//	quarry.yaml                              the plugin's manifest for krew
//	SHA256SUMS                               of all files of the directory
//
// The programs of each platform are in a directory that is called so
// (linux_amd64). Nothing depends on when, where and by whom it is run: the same
// programs and sources give the same bytes.
//
//	main.go     what is made in which order
//	archive.go  archives of equal bytes for equal content
//	bom.go      what a program was made of
//	chart.go    the chart and its custom resources
//	krew.go     the manifest for krew
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// release is what is asked for.
type release struct {
	version, commit string
	// modified is the time of every file in an archive: the commit's.
	modified time.Time
	// programs is the directory of the built programs, root the repository and
	// out where files are written.
	programs, root, out string
	// url is where the files will be found.
	url string
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("release: ")
	var r release
	var seconds int64
	flag.StringVar(&r.version, "version", "", "the `version`")
	flag.StringVar(&r.commit, "commit", "", "the `hash` of the commit that the programs were made of")
	flag.Int64Var(&seconds, "time", 0, "when that was made, in `seconds` since 1970")
	flag.StringVar(&r.programs, "programs", "dist/release/programs", "the `directory` of the built programs")
	flag.StringVar(&r.root, "root", ".", "the repository's `directory`")
	flag.StringVar(&r.out, "o", "dist/release", "the `directory` to write to")
	flag.StringVar(&r.url, "url", "", "the `address` that the files will be found below")
	flag.Parse()
	r.modified = time.Unix(seconds, 0).UTC()
	if err := r.run(); err != nil {
		log.Fatal(err)
	}
}

// programs are what is built for each platform.
var programs = []string{"quarry", "kubectl-quarry"}

func (r *release) run() error {
	if err := r.check(); err != nil {
		return err
	}
	platforms, err := os.ReadDir(r.programs)
	if err != nil {
		return err
	}
	if len(platforms) == 0 {
		return fmt.Errorf("there is nothing in %s", r.programs)
	}

	plugins := map[string]string{} // checksums, by platform
	for _, p := range platforms {
		for _, program := range programs {
			archive, err := r.program(program, p.Name())
			if err != nil {
				return fmt.Errorf("%s for %s: %w", program, p.Name(), err)
			}
			if program == "kubectl-quarry" {
				plugins[p.Name()] = archive
			}
		}
	}

	if err := errors.Join(r.chart(), r.crds(), r.krew(plugins)); err != nil {
		return err
	}
	return r.checksums()
}

// check refuses what nobody could build again.
func (r *release) check() error {
	switch {
	case r.version == "" || r.url == "":
		return errors.New("-version and -url are needed")
	case len(r.commit) < 40 || strings.HasSuffix(r.commit, "-dirty"):
		return fmt.Errorf("commit %q: a release is made of a commit, without changes beside it", r.commit)
	case r.modified.Unix() <= 0:
		return errors.New("-time is needed: when the commit was made")
	}
	return os.MkdirAll(r.out, 0o755)
}

// program packs a program of a platform, beside what it was made of, and returns
// the archive's checksum.
func (r *release) program(name, platform string) (sum string, err error) {
	content, err := os.ReadFile(filepath.Join(r.programs, platform, name))
	if err != nil {
		return "", err
	}
	licence, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return "", err
	}

	base := fmt.Sprintf("%s_%s_%s", name, r.version, platform)
	bom, err := r.bom(name, filepath.Join(r.programs, platform, name), content)
	if err != nil {
		return "", err
	}
	if err := r.write(base+".cdx.json", bom); err != nil {
		return "", err
	}

	packed, err := r.pack([]file{{name, 0o755, content}, {"LICENSE", 0o644, licence}})
	if err != nil {
		return "", err
	}
	return sumOf(packed), r.write(base+".tar.gz", packed)
}

// write writes a file of the release.
func (r *release) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(r.out, name), content, 0o644)
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// checksums writes down the sums of all files there are, also of those that
// others put there: the images.
func (r *release) checksums() error {
	const name = "SHA256SUMS"
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}

	var lines []string
	for _, e := range entries {
		if e.IsDir() || e.Name() == name {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.out, e.Name()))
		if err != nil {
			return err
		}
		lines = append(lines, sumOf(content)+"  "+e.Name()+"\n")
		fmt.Printf("%9d KiB  %s\n", (len(content)+1023)>>10, e.Name())
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[64:], b[64:]) })
	return r.write(name, []byte(strings.Join(lines, "")))
}

package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// tools are the programs the agent starts, or an administrator in its
// container, with the Debian package each is in and its other names.
var tools = []struct {
	program, pkg string
	alias        []string
}{
	{"mke2fs", "e2fsprogs", []string{"mkfs.ext4"}},
	{"e2fsck", "e2fsprogs", []string{"fsck.ext4"}},
	{"resize2fs", "e2fsprogs", nil},
	{"tune2fs", "e2fsprogs", nil},
	{"dumpe2fs", "e2fsprogs", nil},
	{"mkfs.xfs", "xfsprogs", nil},
	{"xfs_repair", "xfsprogs", nil},
	{"xfs_db", "xfsprogs", nil},
	{"xfs_growfs", "xfsprogs", nil},
	{"mkfs.btrfs", "btrfs-progs", nil},
	{"btrfs", "btrfs-progs", nil},
}

// files the tools read.
var files = []string{"/etc/mke2fs.conf"}

// opened are libraries that no program names: the C library opens them when a
// thread ends early.
var opened = []string{"libgcc_s.so.1"}

// programDirs and libraryDirs are where Debian keeps them; the second as its
// dynamic linker searches, without ld.so.cache.
var programDirs = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

func libraryDirs(machine elf.Machine) []string {
	triplet := map[elf.Machine]string{
		elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu", elf.EM_RISCV: "riscv64-linux-gnu",
	}[machine]
	return []string{"/usr/lib/" + triplet, "/lib/" + triplet, "/usr/lib64", "/lib64", "/usr/lib", "/lib"}
}

// findTools returns the programs, their libraries and the dynamic linker as
// entries of a layer.
func findTools() ([]entry, error) {
	var (
		entries []entry
		missing []string
		libs    = libraries{found: map[string]string{}}
	)
	for _, tool := range tools {
		source, err := find(tool.program, programDirs)
		if err != nil {
			missing = append(missing, tool.pkg)
			continue
		}
		if err := libs.resolve(source); err != nil {
			return nil, err
		}
		entries = append(entries, entry{path: "usr/sbin/" + tool.program, source: source, mode: 0o755})
		for _, alias := range tool.alias {
			entries = append(entries, entry{path: "usr/sbin/" + alias, link: tool.program})
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("filesystem tools are missing here, run: apt-get install --no-install-recommends %s",
			strings.Join(slices.Compact(missing), " "))
	}
	for _, name := range opened {
		if err := libs.need(name); err != nil {
			return nil, err
		}
	}
	for target, source := range libs.found {
		entries = append(entries, entry{path: target, source: source, mode: 0o755})
	}
	for _, file := range files {
		entries = append(entries, entry{path: strings.TrimPrefix(file, "/"), source: file, mode: 0o644})
	}
	return entries, nil
}

// libraries collects shared libraries: where each goes in the image, and the
// file of this machine it is.
type libraries struct {
	found   map[string]string
	machine elf.Machine
}

// resolve collects what the program or library needs, and what that needs. It
// reads the files as ldd would, but runs nothing of them.
func (l *libraries) resolve(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	if l.machine == elf.EM_NONE {
		l.machine = f.Machine
	}
	if f.Machine != l.machine {
		return fmt.Errorf("%s is for %s, other files for %s", file, f.Machine, l.machine)
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		if paths, err := f.DynString(tag); err == nil && len(paths) > 0 {
			return fmt.Errorf("%s looks for libraries in a path of its own (%s), which is not supported",
				file, strings.Join(paths, ":"))
		}
	}
	if linker, err := interpreter(f); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	} else if linker != "" {
		l.add(linker, linker)
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, name := range names {
		if err := l.need(name); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func (l *libraries) need(name string) error {
	if strings.HasPrefix(name, "ld-linux") {
		return nil // the linker, named as a library too: PT_INTERP says where it has to be
	}
	source, err := find(name, libraryDirs(l.machine))
	if err != nil {
		return err
	}
	if !l.add(source, source) {
		return nil
	}
	return l.resolve(source)
}

// add says whether the file was not there yet. All directories are those below
// /usr: /lib is a link to /usr/lib.
func (l *libraries) add(target, source string) bool {
	target = strings.TrimPrefix(target, "/")
	if !strings.HasPrefix(target, "usr/") {
		target = "usr/" + target
	}
	if _, ok := l.found[target]; ok {
		return false
	}
	l.found[target] = source
	return true
}

// interpreter is the dynamic linker the file asks for (PT_INTERP), or "".
func interpreter(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", err
		}
		return strings.TrimRight(string(b), "\x00"), nil
	}
	return "", nil
}

// find returns the first regular file, links followed, of that name in the
// directories.
func find(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		file := filepath.Join(dir, name)
		info, err := os.Stat(file)
		if err == nil && info.Mode().IsRegular() {
			return file, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s is in none of %s", name, strings.Join(dirs, ", "))
}

// requireStatic: the image has libraries for the tools only, and a program
// linked against another machine's would fail late.
func requireStatic(binary string) error {
	f, err := elf.Open(binary)
	if err != nil {
		return fmt.Errorf("%s: %w (run `make build`)", binary, err)
	}
	defer f.Close()
	linker, err := interpreter(f)
	if err != nil {
		return fmt.Errorf("%s: %w", binary, err)
	}
	if linker != "" {
		return fmt.Errorf("%s is not static (it asks for %s): build it with CGO_ENABLED=0", binary, linker)
	}
	return nil
}

package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// guestSource is the guest's init. It travels inside this package, so that a
// test binary which runs far from the source can still build the initramfs.
//
//go:embed guest/*.go wire/*.go
var guestSource embed.FS

// modulePath is the import path of the module that guestSource is a part of.
const modulePath = "github.com/quarry-storage/quarry/test"

// bootModules are in the initramfs: what it takes to reach the host's root.
var bootModules = []string{"virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay"}

// hostModules are loaded from the host's root before the command starts: those
// with control devices in /dev that nobody opens before they exist. All others,
// filesystems, quota formats and device-mapper targets, the kernel loads by
// modprobe when it first needs them, as on any node: an emulated CPU takes a
// second or more for each of the large ones.
var hostModules = []string{"virtio_blk", "loop", "dm_mod"}

// buildInitramfs returns the path of the initramfs for the kernel. Its name
// carries a hash of everything it is made of besides the kernel's directory.
func buildInitramfs(ctx context.Context, cache string, k kernel) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, bootModules)
	err := fs.WalkDir(guestSource, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := guestSource.ReadFile(path)
		fmt.Fprintf(hash, "%s %d\n%s", path, len(b), b)
		return err
	})
	if err != nil {
		return "", err
	}
	final := filepath.Join(cache, fmt.Sprintf("initramfs-%s-%.8x", filepath.Base(k.dir), hash.Sum(nil)))
	if fileExists(final) {
		return final, nil
	}
	guest, err := buildGuest(ctx, cache)
	if err != nil {
		return "", err
	}
	var image bytes.Buffer
	archive := cpio{w: &image}
	for _, dir := range []string{"dev", "host", "modules", "overlay", "proc", "root", "sys"} {
		archive.add(dir, modeDir|0o755, nil)
	}
	archive.add("init", modeFile|0o755, guest)
	paths, err := loadOrder(k, bootModules)
	if err != nil {
		return "", err
	}
	var order strings.Builder
	for _, p := range paths {
		b, err := os.ReadFile(filepath.Join(k.dir, "lib", "modules", k.release, p))
		if err != nil {
			return "", fmt.Errorf("machine: initramfs: %w", err)
		}
		archive.add("modules/"+filepath.Base(p), modeFile|0o644, b)
		fmt.Fprintln(&order, filepath.Base(p))
	}
	archive.add("modules/order", modeFile|0o644, []byte(order.String()))
	archive.add("TRAILER!!!", 0, nil)

	tmp, err := os.CreateTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(image.Bytes()); err != nil {
		tmp.Close()
		return "", err
	}
	if err := tmp.Close(); err != nil {
		return "", err
	}
	return final, os.Rename(tmp.Name(), final)
}

// buildGuest compiles the guest's init, static, from the embedded source.
func buildGuest(ctx context.Context, cache string) ([]byte, error) {
	work, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(filepath.Join(work, "machine"), guestSource); err != nil {
		return nil, fmt.Errorf("machine: guest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte("module "+modulePath+"\n\ngo 1.26\n"),
		0o644); err != nil {
		return nil, err
	}
	if _, err := command(ctx, work, "env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off", "GOFLAGS=",
		"go", "build", "-trimpath", "-ldflags=-s -w", "-o", "init", "./machine/guest"); err != nil {
		return nil, fmt.Errorf("machine: compile the guest's init: %w", err)
	}
	return os.ReadFile(filepath.Join(work, "init"))
}

// loadOrder resolves module names into the files to load, dependencies first,
// from depmod's tables. Names that are built into the kernel need nothing.
func loadOrder(k kernel, names []string) ([]string, error) {
	tree := filepath.Join(k.dir, "lib", "modules", k.release)
	moduleName := func(path string) string {
		base, _, _ := strings.Cut(filepath.Base(path), ".ko")
		return strings.ReplaceAll(base, "-", "_")
	}
	builtin, err := os.ReadFile(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("machine: initramfs: %w", err)
	}
	there := map[string]bool{}
	for path := range strings.FieldsSeq(string(builtin)) {
		there[moduleName(path)] = true
	}
	table, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("machine: initramfs: %w", err)
	}
	needs := map[string][]string{} // path and what modprobe would load for it, itself first
	for line := range strings.Lines(string(table)) {
		path, deps, _ := strings.Cut(line, ":")
		needs[moduleName(path)] = append([]string{path}, strings.Fields(deps)...)
	}
	var order []string
	for _, name := range names {
		if there[name] {
			continue
		}
		paths, ok := needs[name]
		if !ok {
			return nil, fmt.Errorf("machine: kernel %s has no module %s", k.release, name)
		}
		for _, p := range slices.Backward(paths) {
			if !slices.Contains(order, p) {
				order = append(order, p)
			}
		}
	}
	return order, nil
}

// File types of st_mode, for cpio.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

// cpio writes the "newc" format that the kernel unpacks; see cpio(5) and the
// kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	w   io.Writer // a buffer: writes do not fail
	ino int
}

func (c *cpio) add(name string, mode int, data []byte) {
	c.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	io.WriteString(c.w, head)
	c.w.Write(make([]byte, -len(head)&3))
	c.w.Write(data)
	c.w.Write(make([]byte, -len(data)&3))
}

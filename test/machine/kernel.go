package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/quarry-storage/quarry/test/debian"
)

// DefaultKernel is the kernel series that an empty Config.Kernel means.
const DefaultKernel = "6.1"

// seriesPattern is what a kernel series looks like, for instance 6.12.
var seriesPattern = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// kernel is an unpacked kernel package in the cache.
type kernel struct {
	series  string // as asked for: 6.1
	release string // uname -r: 6.1.0-56-amd64
	dir     string // what the package unpacked to: boot/, lib/modules/RELEASE/
}

// image is the kernel to boot: the ELF file when it could be extracted, which
// starts at once, else the bzImage, which first unpacks itself.
func (k kernel) image() string {
	if elf := filepath.Join(k.dir, "vmlinux"); fileExists(elf) {
		return elf
	}
	return filepath.Join(k.dir, "boot", "vmlinuz-"+k.release)
}

// CacheDir is where kernels and initramfs images are kept: the directory
// "machine" in QUARRY_TESTBED_CACHE or, without that, in
// ~/.cache/quarry-testbed. All of it can be deleted at any time.
func CacheDir() (string, error) {
	base := os.Getenv("QUARRY_TESTBED_CACHE")
	if base == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("machine: no place for a cache, set QUARRY_TESTBED_CACHE: %w", err)
		}
		base = filepath.Join(user, "quarry-testbed")
	}
	return filepath.Abs(filepath.Join(base, "machine"))
}

// Setup makes the kernel series (6.1, 6.12; "" is DefaultKernel) ready to boot:
// it installs what is missing of QEMU and kmod, downloads and unpacks Debian's
// newest kernel package of the series, and builds the initramfs. What is there
// already is used as it is, without asking apt, unless update is set: then a
// newer package of the series replaces the cached one.
// Several processes may call it at once; one works and the others wait.
func Setup(ctx context.Context, series string, update bool) error {
	_, _, err := setup(ctx, series, update)
	return err
}

func setup(ctx context.Context, series string, update bool) (kernel, string, error) {
	if series == "" {
		series = DefaultKernel
	}
	if !seriesPattern.MatchString(series) {
		return kernel{}, "", fmt.Errorf("machine: kernel %q is not a series like %s", series, DefaultKernel)
	}
	cache, err := CacheDir()
	if err != nil {
		return kernel{}, "", err
	}
	unlock, err := lockDir(cache)
	if err != nil {
		return kernel{}, "", err
	}
	defer unlock()
	if err := debian.Install(ctx, progress, debian.Machine); err != nil {
		return kernel{}, "", err
	}
	k, err := cachedKernel(cache, series)
	if update || errors.Is(err, os.ErrNotExist) {
		k, err = fetchKernel(ctx, cache, series)
	}
	if err != nil {
		return kernel{}, "", err
	}
	initramfs, err := buildInitramfs(ctx, cache, k)
	if err != nil {
		return kernel{}, "", err
	}
	return k, initramfs, nil
}

// Kernels lists the series of kernel that the configured apt sources offer,
// oldest first. No source is ever added.
func Kernels(ctx context.Context) ([]string, error) {
	names, err := packageNames(ctx, "linux-image-")
	if err != nil {
		return nil, err
	}
	var series []string
	for _, n := range names {
		if m := imagePattern.FindStringSubmatch(n); m != nil {
			series = append(series, m[1])
		}
	}
	slices.SortFunc(series, compareVersions)
	return slices.Compact(series), nil
}

// imagePattern matches the general-purpose kernel packages by name and catches
// the series: linux-image-6.1.0-56-amd64, linux-image-6.12.117+deb12-amd64.
var imagePattern = regexp.MustCompile(`^linux-image-([0-9]+\.[0-9]+)\.[0-9][0-9.+~a-z-]*-amd64$`)

// variantPattern matches those of them that are not what a node runs.
var variantPattern = regexp.MustCompile(`-(cloud|rt|unsigned|dbg)(-|$)`)

// cachedKernel finds the kernel that an earlier fetchKernel committed.
// The error is os.ErrNotExist when there is none.
func cachedKernel(cache, series string) (kernel, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(cache, "kernel-"+series))
	if err != nil {
		return kernel{}, err
	}
	releases, err := os.ReadDir(filepath.Join(dir, "lib", "modules"))
	if err != nil {
		return kernel{}, err
	}
	if len(releases) != 1 {
		return kernel{}, fmt.Errorf("machine: %s: one release expected in lib/modules, found %d: delete the directory",
			dir, len(releases))
	}
	return kernel{series: series, release: releases[0].Name(), dir: dir}, nil
}

// fetchKernel downloads and unpacks the newest package of the series into a
// directory named by package and version, and commits it by renaming the
// series' symbolic link into place.
func fetchKernel(ctx context.Context, cache, series string) (kernel, error) {
	pkg, err := newestPackage(ctx, series)
	if err != nil {
		return kernel{}, err
	}
	work, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(work)
	// apt's own unprivileged user would otherwise not get in here.
	if err := os.Chmod(work, 0o755); err != nil {
		return kernel{}, err
	}
	if _, err := command(ctx, work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return kernel{}, fmt.Errorf("machine: kernel %s: %w", series, err)
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return kernel{}, fmt.Errorf("machine: apt-get download %s left %d packages", pkg, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if _, err := command(ctx, work, "dpkg", "-x", debs[0], tree); err != nil {
		return kernel{}, fmt.Errorf("machine: kernel %s: %w", series, err)
	}
	releases, err := os.ReadDir(filepath.Join(tree, "lib", "modules"))
	if err != nil || len(releases) != 1 {
		return kernel{}, fmt.Errorf("machine: package %s has %d module trees: %v", pkg, len(releases), err)
	}
	k := kernel{series: series, release: releases[0].Name(), dir: tree}
	if _, err := command(ctx, work, "depmod", "-b", tree, k.release); err != nil {
		return kernel{}, fmt.Errorf("machine: kernel %s: %w", series, err)
	}
	if err := extractELF(ctx, k); err != nil {
		fmt.Fprintln(os.Stderr, "machine: the kernel will unpack itself at each boot:", err)
	}

	name := strings.TrimSuffix(filepath.Base(debs[0]), ".deb")
	final := filepath.Join(cache, name)
	if !fileExists(final) {
		if err := os.Rename(tree, final); err != nil {
			return kernel{}, err
		}
	}
	link := filepath.Join(work, "link")
	if err := os.Symlink(name, link); err != nil {
		return kernel{}, err
	}
	if err := os.Rename(link, filepath.Join(cache, "kernel-"+series)); err != nil {
		return kernel{}, err
	}
	k.dir = final
	return k, nil
}

// newestPackage is the name of the newest kernel package of the series.
func newestPackage(ctx context.Context, series string) (string, error) {
	names, err := packageNames(ctx, "linux-image-"+series+".")
	if err == nil && len(names) == 0 { // perhaps the package lists are old
		progress("apt-get update, for a kernel %s", series)
		if err = debian.Update(ctx); err == nil {
			names, err = packageNames(ctx, "linux-image-"+series+".")
		}
	}
	if err != nil {
		return "", err
	}
	if len(names) == 0 {
		have, _ := Kernels(ctx)
		return "", fmt.Errorf(
			"machine: the configured apt sources have no kernel %s for amd64; they have %s (is `apt-get update` missing?)",
			series, strings.Join(have, ", "))
	}
	return slices.MaxFunc(names, compareVersions), nil
}

// packageNames lists the installable general-purpose kernel packages whose
// names begin with prefix. apt also knows names that are only referred to.
func packageNames(ctx context.Context, prefix string) ([]string, error) {
	out, err := command(ctx, "", "apt-cache", "search", "--names-only", "^"+regexp.QuoteMeta(prefix))
	if err != nil {
		return nil, fmt.Errorf("machine: ask apt for kernels: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(line, " ")
		if imagePattern.MatchString(name) && !variantPattern.MatchString(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// compareVersions orders strings as sort -V does: digits by their number.
func compareVersions(a, b string) int {
	digits := regexp.MustCompile(`[0-9]+|[^0-9]+`)
	as, bs := digits.FindAllString(a, -1), digits.FindAllString(b, -1)
	return slices.CompareFunc(as, bs, func(x, y string) int {
		if isDigit(x[0]) && isDigit(y[0]) && len(x) != len(y) {
			return len(x) - len(y)
		}
		return strings.Compare(x, y)
	})
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// command runs a program of the host and returns its standard output; the
// error has the command line and the last of what it said.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(stderr.String())
		if len(said) > 2000 {
			said = "... " + said[len(said)-2000:]
		}
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return stdout.Bytes(), nil
}

// lockDir makes the directory and holds an exclusive lock on it.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("machine: cache: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("machine: cache: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("machine: lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// progress tells a person what takes a while.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "machine: "+format+"\n", args...) }

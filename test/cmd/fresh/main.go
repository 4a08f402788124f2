// Command fresh tries the set-up of the README's commands on machines that
// have nothing: in root filesystems made of Debian's essential packages, Go,
// git and make alone. What a machine in use has from earlier hides what a
// target forgot to install.
//
//	fresh [-suites bookworm,trixie] [-root REPOSITORY]
//
// The host's Go, and what it has downloaded and compiled, are lent to each, so
// that a run takes a minute and not an hour.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/quarry-storage/quarry/test/debian"
	"golang.org/x/sys/unix"
)

// The targets that prepare `make demo` and `make test`, in the order in which
// those run them.
var targets = [][]string{
	{"make", "demo-packages", "image"},
	{"make", "test-packages"},
}

func main() {
	suites := flag.String("suites", "bookworm,trixie", "Debian's releases to try, by `name`, with commas")
	root := flag.String("root", "..", "the `repository`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	for suite := range strings.SplitSeq(*suites, ",") {
		start := time.Now()
		if err := try(ctx, suite, *root); err != nil {
			fmt.Fprintf(os.Stderr, "fresh: %s: %v\n", suite, err)
			os.Exit(1)
		}
		fmt.Printf("fresh: %s: the set-up of demo and test works from nothing (%s)\n",
			suite, time.Since(start).Round(time.Second))
	}
}

func try(ctx context.Context, suite, repository string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("making a root filesystem needs root")
	}
	progress := func(format string, args ...any) { fmt.Printf("fresh: "+format+"\n", args...) }
	if err := debian.Install(ctx, progress, debian.Fresh); err != nil {
		return err
	}
	root, err := os.MkdirTemp("", "quarry-fresh-")
	if err != nil {
		return err
	}
	m := &machine{root: root}
	defer func() { err = errors.Join(err, m.close()) }()

	progress("%s: a root filesystem of Debian's essential packages", suite)
	if err := m.install(ctx, suite); err != nil {
		return err
	}
	if err := m.lend(ctx, repository); err != nil {
		return err
	}
	for _, target := range targets {
		progress("%s: %s", suite, strings.Join(target, " "))
		if err := m.run(ctx, target...); err != nil {
			return err
		}
	}
	return m.check(repository)
}

// machine is another Debian, in a directory.
type machine struct {
	root   string
	mounts []string // below root, to be taken away again
	env    []string
}

const sources = "/src"

// install makes the root filesystem. Packages come from where the host's do.
func (m *machine) install(ctx context.Context, suite string) error {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian").Output()
	if err != nil {
		return fmt.Errorf("ask apt for its sources: %w", err)
	}
	mirror := ""
	for line := range strings.Lines(string(out)) {
		uri, component, _ := strings.Cut(strings.TrimSpace(line), " ")
		if component == "main" && !strings.Contains(uri, "security") {
			mirror = uri
		}
	}
	if mirror == "" {
		return errors.New("apt has no source of Debian's main packages here")
	}
	return m.host(ctx, "mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--include=ca-certificates,git,make",
		suite, m.root, mirror)
}

// lend copies the sources in and mounts the host's Go with what it has
// compiled.
func (m *machine) lend(ctx context.Context, repository string) error {
	list := "git -C " + repository + " ls-files -z --cached --others --exclude-standard | tar -C " + repository +
		" --null --ignore-failed-read -T - -cf - | tar -C " + m.root + sources + " -xf -"
	if err := os.MkdirAll(m.root+sources, 0o755); err != nil {
		return err
	}
	if err := m.host(ctx, "sh", "-c", list); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE", "GOPROXY").Output()
	if err != nil {
		return fmt.Errorf("ask go where it is: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	m.env = []string{
		"HOME=/root", "PATH=" + lines[0] + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"GOMODCACHE=" + lines[1], "GOCACHE=" + lines[2],
		"GOPROXY=" + lines[3], "GOFLAGS=-buildvcs=false", "LC_ALL=C.UTF-8",
	}
	for _, dir := range append(lines[:3:3], "/proc", "/sys", "/dev") {
		if err := m.bind(dir); err != nil {
			return err
		}
	}
	return nil
}

// bind shows a directory of the host at the same place.
func (m *machine) bind(dir string) error {
	target := filepath.Join(m.root, dir)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	m.mounts = append(m.mounts, target)
	// What is mounted or taken away below it stays its own.
	return unix.Mount("", target, "", unix.MS_SLAVE|unix.MS_REC, "")
}

// run runs a command in the machine, in the sources, and shows its output.
func (m *machine) run(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, arguments[0], arguments[1:]...)
	command.Path = "/usr/bin/" + arguments[0]
	command.Err = nil // the name was looked up on this machine
	command.Dir = sources
	command.Env = m.env
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &unix.SysProcAttr{Chroot: m.root}
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(arguments, " "), err)
	}
	return nil
}

// check looks for every program that the sources call.
func (m *machine) check(repository string) error {
	calls, err := debian.Calls(repository)
	if err != nil {
		return err
	}
	var missing []string
	for program, files := range calls {
		if program != "go" && !strings.HasPrefix(program, "/proc/") && !m.has(program) {
			missing = append(missing, fmt.Sprintf("%s (called by %s)", program, files[0]))
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("these programs are called, and were installed by no target:\n  %s",
			strings.Join(missing, "\n  "))
	}
	return nil
}

func (m *machine) has(program string) bool {
	places := []string{program}
	if !strings.HasPrefix(program, "/") {
		places = []string{"/usr/sbin/" + program, "/usr/bin/" + program, "/sbin/" + program, "/bin/" + program}
	}
	return slices.ContainsFunc(places, func(place string) bool {
		_, err := os.Lstat(filepath.Join(m.root, place))
		return err == nil
	})
}

func (m *machine) host(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, arguments[0], arguments[1:]...)
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", arguments[0], err, output)
	}
	return nil
}

// close takes the machine away. A directory that is still mounted is not
// removed: it is the host's.
func (m *machine) close() error {
	for _, target := range slices.Backward(m.mounts) {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return os.RemoveAll(m.root)
}

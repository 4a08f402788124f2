package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// progressInterval is how often a running build says that it still runs.
const progressInterval = 10 * time.Second

// goBuild builds packages of a module in the directory and says now and then
// how far it is: as go build's -v does, in packages compiled, of how many.
func (c *Cache) goBuild(ctx context.Context, dir, linkFlags, output string, arguments ...string) error {
	count, err := c.stale(ctx, dir, arguments)
	if err != nil {
		return err
	}
	build := append([]string{"build", "-v", "-mod=readonly", "-ldflags", linkFlags, "-o", output}, arguments...)
	command := goCommand(ctx, dir, build...)
	stderr, err := command.StderrPipe()
	if err != nil {
		return err
	}

	// The signal is sent when the thread that started the child ends, not the
	// process: hence the lock.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Start(); err != nil {
		return fmt.Errorf("run the go command: %w", err)
	}
	var packages atomic.Int64
	stop := c.report(&packages, count)
	var tail []string // what is not a package's name, to show in case it fails
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		line := lines.Text()
		if isPackage(line) {
			packages.Add(1)
		} else if !strings.HasPrefix(line, "go: downloading ") {
			tail = append(tail, line)
		}
	}
	err = command.Wait()
	stop()

	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return goFailed(dir, "build", errors.Join(err, lines.Err()), tail)
	}
	return nil
}

// stale counts the packages that a build has to compile: those whose result
// Go has not kept from an earlier one.
func (c *Cache) stale(ctx context.Context, dir string, arguments []string) (int, error) {
	list := append([]string{"list", "-mod=readonly", "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}"},
		arguments...)
	command := goCommand(ctx, dir, list...)
	var stdout, stderr strings.Builder
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return 0, goFailed(dir, "list", err, strings.Split(stderr.String(), "\n"))
	}
	return len(strings.Fields(stdout.String())), nil
}

func goCommand(ctx context.Context, dir string, arguments ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no build outlives who asked for it
	return command
}

func goFailed(dir, verb string, err error, output []string) error {
	if len(output) > 40 {
		output = output[len(output)-40:]
	}
	return fmt.Errorf("go %s in %s: %w\n%s", verb, dir, err, strings.Join(output, "\n"))
}

// report tells of progress until the returned function is called.
func (c *Cache) report(packages *atomic.Int64, count int) func() {
	ticker := time.NewTicker(progressInterval)
	done := make(chan struct{})
	started := time.Now()
	c.Progress("  %d packages to compile", count)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				c.Progress("  still building: %s, %d of %d packages compiled", time.Since(started).Round(time.Second),
					packages.Load(), count)
			}
		}
	}()
	return func() {
		ticker.Stop()
		close(done)
	}
}

// isPackage says whether the line is one of `go build -v`, which names the
// packages it compiles.
func isPackage(line string) bool {
	return line != "" && !strings.ContainsAny(line, " #:\t")
}

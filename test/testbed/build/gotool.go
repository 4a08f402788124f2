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

// goTool runs the go command in a directory and says now and then how far it is.
func (c *Cache) goTool(ctx context.Context, dir string, environment []string, arguments ...string) error {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	command.Env = append(command.Env, environment...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no build outlives who asked for it
	output, err := command.StderrPipe()
	if err != nil {
		return err
	}

	// The signal is sent when the thread that started the child ends, not the process: hence the lock.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Start(); err != nil {
		return fmt.Errorf("run the go command: %w", err)
	}
	var packages atomic.Int64
	stop := c.report(&packages)
	var tail []string // what is not a package's name, to show in case it fails
	lines := bufio.NewScanner(output)
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
		if len(tail) > 40 {
			tail = tail[len(tail)-40:]
		}
		return fmt.Errorf("go %s in %s: %w\n%s", arguments[0], dir, errors.Join(err, lines.Err()), strings.Join(tail, "\n"))
	}
	return nil
}

// report tells of progress until the returned function is called.
func (c *Cache) report(packages *atomic.Int64) func() {
	ticker := time.NewTicker(progressInterval)
	done := make(chan struct{})
	started := time.Now()
	go func() {
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				c.Progress("  still building: %s, %d packages compiled", time.Since(started).Round(time.Second), packages.Load())
			}
		}
	}()
	return func() {
		ticker.Stop()
		close(done)
	}
}

// isPackage says whether the line is one of `go build -v`, which names the packages it compiles.
func isPackage(line string) bool {
	return line != "" && !strings.ContainsAny(line, " #:\t")
}

package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// look is what the agent's look at a thousand volumes takes of a core. It is
// measured by the store's own benchmark, in a process without anything else to
// do: beside a cluster the agent's other work could not be told from it.
func (b *bench) look(ctx context.Context, s *Section) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "bench-look")
	cmd.Dir = b.Repository
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, b.Log), b.Log
	// As a terminal does it: all of them, so that the one that has devices
	// gives them back.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 2 * time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make bench-look: %w", err)
	}
	found, err := metrics(&out)
	if err != nil {
		return err
	}
	t := s.table("", "look")
	t.Row("volumes", found["volumes"])
	t.Row("CPU of one look, ms", found["cpu-µs/look"]/1000)
	t.Row("% of a core, at one look every 5 seconds", found["%core"])
	s.Details["metrics"] = found
	s.note(
		"Nine in ten are mounted ext4 images, the others Block. CPU is user and kernel time of the process (getrusage). Also by itself: `make bench-look`, " +
			"with `QUARRY_BENCH_LOOK_VOLUMES=100` where a machine has few loop devices.")
	return nil
}

// metrics reads the line of a Go benchmark: its name, how often it ran, and
// then values with their units.
func metrics(out io.Reader) (map[string]float64, error) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "BenchmarkLook") {
			continue
		}
		found := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("read the benchmark's line %q: %w", lines.Text(), err)
			}
			found[fields[i+1]] = value
		}
		return found, nil
	}
	return nil, fmt.Errorf("the benchmark printed no result")
}

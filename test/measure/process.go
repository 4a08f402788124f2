package measure

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of processor time in proc(5): USER_HZ is 100 on every
// architecture that Go knows on Linux.
const tick = 10 * time.Millisecond

// Usage is what a process has used until now.
type Usage struct {
	CPU      time.Duration // of all its threads
	Resident int64         // bytes, now
	Peak     int64         // bytes, the highest of its life, or since ResetPeak
}

// UsageOf reads the usage of a process.
func UsageOf(pid int) (Usage, error) {
	var u Usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, fmt.Errorf("read the usage of process %d: %w", pid, err)
	}
	// The name, in parentheses, may hold anything; the fields are counted
	// behind it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, field := range fields[11:13] { // utime, stime
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return u, fmt.Errorf("read the usage of process %d: %w", pid, err)
		}
		u.CPU += time.Duration(ticks) * tick
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, fmt.Errorf("read the usage of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kibibytes, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10,
			64) //nolint:errcheck // other lines
		switch name {
		case "VmRSS":
			u.Resident = kibibytes << 10
		case "VmHWM":
			u.Peak = kibibytes << 10
		}
	}
	return u, nil
}

// ResetPeak has the peak of a process counted from now on. It needs the rights
// of its owner.
func ResetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200); err != nil {
		return fmt.Errorf("reset the memory peak of process %d: %w", pid, err)
	}
	return nil
}

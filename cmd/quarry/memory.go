package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
)

// memoryShare is how much of the container's limit the Go runtime may use
// before it collects garbage more often instead of growing: the rest is for
// what is not Go's, and for a moment's surplus.
const memoryShare = 0.9

// limitMemory makes the runtime heed the memory limit of the container that the
// process is in. GOMEMLIMIT, where it is set, is what counts; without a limit
// nothing changes.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := containerLimit("/proc/self/cgroup", "/sys/fs/cgroup"); limit > 0 {
		debug.SetMemoryLimit(int64(float64(limit) * memoryShare))
	}
}

// saveMemory has the runtime collect garbage at half of the surplus it usually
// allows itself: the agent is on every node and seldom does anything, and the
// controller's memory is its caches, which are read once at the start and would
// leave as much again unused. GOGC, where it is set, is what counts.
func saveMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// containerLimit is the memory limit of the process's control group (version 2)
// in bytes, 0 if there is none or it cannot be told. membership is the file in
// /proc that names the group, root where control groups are mounted: a
// container sees its own group as the root, or its whole path below the host's.
func containerLimit(membership, root string) int64 {
	group := "/"
	if text, err := os.ReadFile(membership); err == nil {
		for line := range bytes.Lines(text) {
			if name, v2 := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::")); v2 {
				group = string(name)
			}
		}
	}

	lowest := int64(0)
	for dir := filepath.Join("/", group); ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(root, dir, "memory.max"))
		if err == nil {
			// "max" is no number.
			limit, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
			if err == nil && limit > 0 && (lowest == 0 || limit < lowest) {
				lowest = limit
			}
		}

		if dir == "/" {
			return lowest
		}
	}
}

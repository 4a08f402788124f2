package filesystem

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// repairing lets one repair run at a time: each may need as much memory as
// there is.
var repairing = semaphore.NewWeighted(1)

// leastForRepair is given to a repair in any case, in bytes: a usual one takes
// less.
const leastForRepair = 48 << 20

// memoryForRepair is how much memory a repair may take, in bytes: three
// quarters of what our control group has left, without what can be dropped, and
// half of what the machine has.
func memoryForRepair() uint64 {
	room := available("/proc/meminfo") / 2
	if limit, used, ok := groupMemory(); ok {
		room = min(room, (limit-min(used, limit))/4*3)
	}
	return max(room, leastForRepair)
}

// available is what the kernel says could be had without swapping, in bytes.
func available(meminfo string) uint64 {
	content, _ := os.ReadFile(meminfo)
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, _ := strconv.ParseUint(
				strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// groupMemory returns the memory limit of our control group and what of it
// cannot be dropped, in bytes; ok is false where there is no limit. In a
// container the group is the root of what is mounted there.
func groupMemory() (limit, used uint64, ok bool) {
	for _, g := range []struct{ dir, limit, held string }{
		{"/sys/fs/cgroup", "memory.max", "anon"},
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "rss"},
	} {
		content, err := os.ReadFile(filepath.Join(g.dir, g.limit))
		if err != nil {
			continue
		}
		limit, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 64)
		if err != nil || limit > 1<<60 { // "max", or what is none in the first version
			return 0, 0, false
		}
		stat, _ := os.ReadFile(filepath.Join(g.dir, "memory.stat"))
		for line := range strings.Lines(string(stat)) {
			if rest, found := strings.CutPrefix(line, g.held+" "); found {
				used, _ = strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			}
		}
		return limit, used, true
	}
	return 0, 0, false
}

// limitMemory bounds the address space of a process that has just been started,
// and has the kernel take it first where memory is short all the same.
func limitMemory(pid int, bytes uint64) error {
	limit := unix.Rlimit{Cur: bytes, Max: bytes}
	if err := unix.Prlimit(pid, unix.RLIMIT_AS, &limit, nil); err != nil {
		return fmt.Errorf("limit the memory of process %d: %w", pid, err)
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
	return nil
}

// stackForRepair is the room that each thread of a repair gets for its stack,
// in bytes. e2fsck reads bitmaps in a thread for each processor of the machine,
// and the C library reserves the limit of the stack, 8 MiB, for each: on large
// machines that is more than a repair may take, and it ends before it has
// begun.
const stackForRepair = 512 << 10

// lowering keeps the limit of the stack from being lowered twice.
var lowering sync.Mutex

// startWithLittleStack starts a process with that limit of the stack. A process
// reads it when it begins, before it could be set from outside, so it is set
// for ourselves meanwhile; our own threads' stacks have nothing to do with it,
// and whatever else is started at this moment has enough of it too.
func startWithLittleStack(cmd *exec.Cmd) error {
	lowering.Lock()
	defer lowering.Unlock()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_STACK, &before); err != nil {
		return fmt.Errorf("read the limit of the stack: %w", err)
	}
	if before.Cur > stackForRepair {
		if err := unix.Setrlimit(unix.RLIMIT_STACK, &unix.Rlimit{Cur: stackForRepair,
			Max: before.Max}); err != nil {
			return fmt.Errorf("limit the stack: %w", err)
		}
		defer func() {
			_ = unix.Setrlimit(unix.RLIMIT_STACK, &before) // up to what it was is always allowed
		}()
	}
	return cmd.Start()
}

// isOutOfMemory tells what e2fsck says when it is refused memory, which each
// part of it does in words of its own; and that a filesystem has no block or
// inode left is another thing.
func isOutOfMemory(output string) bool {
	lower := strings.ToLower(output)
	// A thread (EAGAIN); as it starts.
	for _, words := range []string{"resource temporarily unavailable",
		"trying to initialize program"} {
		if strings.Contains(lower, words) {
			return true
		}
	}
	return strings.Contains(lower, "allocat") && !strings.Contains(lower, "in ext2 filesystem")
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapStart lets go of the pages of the program's own file that are mapped,
// most of which only its start has touched: they would be resident for ever on
// a node that is not short of memory. What is needed again is mapped again when
// it is touched, from the page cache; nothing is evicted from that, since other
// processes run the same file. It returns how many bytes were resident.
func unmapStart() (bytes int64, err error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, fmt.Errorf("find the program's file: %w", err)
	}

	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("read what is mapped: %w", err)
	}

	areas, err := cleanAreas(string(text), program)
	if err != nil {
		return 0, fmt.Errorf("read what is mapped: %w", err)
	}

	var errs []error
	for _, a := range areas {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, a.start, a.end-a.start, unix.MADV_DONTNEED)
		if errno != 0 {
			errs = append(errs, fmt.Errorf("let go of %#x to %#x: %w", a.start, a.end, errno))
			continue
		}

		bytes += a.resident
	}

	return bytes, errors.Join(errs...)
}

// area is a part of the address space.
type area struct {
	start, end uintptr
	resident   int64 // bytes
}

// cleanAreas finds in a text of the form of /proc/PID/smaps where a file is
// mapped without the right to write and without a page that is not the file's
// any more: such a page (of a program that was relocated) would not come back
// as it was.
func cleanAreas(smaps, file string) ([]area, error) {
	var found []area
	var now *area
	clean := false
	end := func() {
		if now != nil && clean {
			found = append(found, *now)
		}
		now, clean = nil, false
	}
	lines := bufio.NewScanner(strings.NewReader(smaps))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) >= 2 && strings.HasSuffix(f[0], ":"):
			if now == nil {
				continue
			}

			kib, err := strconv.ParseInt(f[1], 10, 64)
			switch {
			case f[0] == "Rss:" && err == nil:
				now.resident = kib << 10
			case f[0] == "Anonymous:" && err == nil:
				clean = kib == 0
			}
		case len(f) >= 5:
			end()
			if len(f) < 6 || strings.Join(f[5:], " ") != file || strings.Contains(f[1], "w") {
				continue
			}

			from, to, _ := strings.Cut(f[0], "-")
			a, errA := strconv.ParseUint(from, 16, 64)
			b, errB := strconv.ParseUint(to, 16, 64)
			if err := errors.Join(errA, errB); err != nil || b <= a {
				return nil, fmt.Errorf("no addresses: %q", lines.Text())
			}

			now = &area{start: uintptr(a), end: uintptr(b)}
		}
	}

	end()
	return found, lines.Err()
}

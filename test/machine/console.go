package machine

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
)

// console keeps the last lines of what kernel, init and QEMU itself say.
type console struct {
	mu      sync.Mutex
	lines   []string
	partial []byte
	also    io.Writer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.also != nil {
		_, _ = c.also.Write(p) // the console is a courtesy: the run goes on
	}
	c.partial = append(c.partial, p...)
	for {
		line, rest, found := bytes.Cut(c.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		if s := strings.TrimRight(string(line), "\r "); s != "" {
			c.lines = append(c.lines, s)
		}
		if extra := len(c.lines) - consoleLines; extra > 0 {
			c.lines = c.lines[extra:]
		}
		c.partial = rest
	}
}

// last returns the last lines, the unfinished one included.
func (c *console) last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := slices.Clone(c.lines)
	if s := strings.TrimSpace(string(c.partial)); s != "" {
		lines = append(lines, s)
	}
	return lines
}

// lineWatcher looks for a pattern in the lines of a stream that arrives in
// pieces, and calls found once, even before the line is complete.
type lineWatcher struct {
	pattern string
	found   func()
	line    []byte
	done    bool
}

func (w *lineWatcher) see(p []byte) {
	if w.pattern == "" || w.done {
		return
	}
	w.line = append(w.line, p...)
	if w.done = bytes.Contains(w.line, []byte(w.pattern)); w.done {
		w.line = nil
		w.found()
		return
	}
	w.line = w.line[bytes.LastIndexByte(w.line, '\n')+1:]
}

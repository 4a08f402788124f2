package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"
)

// patience is how long a step waits for what must become so.
const patience = 3 * time.Minute

func title(s string) string { return "\x1b[1;34m" + s + "\x1b[0m" }
func good(s string) string  { return "\x1b[1;32m" + s + "\x1b[0m" }
func bad(s string) string   { return "\x1b[1;31m" + s + "\x1b[0m" }

// show prints a command as a person would type it, and what it says.
func show(command string, output []byte) string {
	fmt.Printf("\n$ %s\n", command)
	text := strings.TrimRight(string(output), "\n")
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Println("  " + line)
	}
	return text
}

// checked says that what was just shown is as it must be.
func checked(format string, args ...any) {
	fmt.Printf("  %s %s\n", good("✓"), fmt.Sprintf(format, args...))
}

// kubectl runs kubectl, shown.
func (d *demo) kubectl(args ...string) (string, error) {
	out, err := d.c.Kubectl(d.ctx, args...)
	if err != nil {
		return "", err
	}
	return show("kubectl "+quoted(args), out), nil
}

// quietly runs kubectl, not shown.
func (d *demo) quietly(args ...string) (string, error) {
	out, err := d.c.Kubectl(d.ctx, args...)
	return string(bytes.TrimSpace(out)), err
}

// node runs a command on a node, shown.
func (d *demo) node(name string, args ...string) (string, error) {
	out, err := d.c.Exec(d.ctx, name, args...)
	if err != nil {
		return "", err
	}
	return show(name+"# "+quoted(args), out), nil
}

func quoted(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		if words[i] = a; strings.ContainsAny(a, " '\"{}[]$*;|") {
			words[i] = "'" + a + "'"
		}
	}
	return strings.Join(words, " ")
}

// wait waits until a condition holds; what it said last is in the error.
func (d *demo) wait(what string, condition func() (bool, string)) error {
	start, deadline := time.Now(), time.Now().Add(patience)
	fmt.Printf("  waiting: %s ", what)
	for {
		ok, state := condition()
		if ok {
			fmt.Printf("(%v)\n", time.Since(start).Round(100*time.Millisecond))
			return nil
		}
		if time.Now().After(deadline) {
			fmt.Println()
			return fmt.Errorf("waited %v for: %s; last seen: %s", patience, what, state)
		}
		select {
		case <-d.ctx.Done():
			fmt.Println()
			return d.ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// want is an assertion about what was shown.
func want(ok bool, format string, args ...any) error {
	if ok {
		checked(format, args...)
		return nil
	}
	return fmt.Errorf("it is not so that "+format, args...)
}

func contains(text string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// progress is where the testbed reports to.
func progress() *os.File { return os.Stdout }

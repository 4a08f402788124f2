// Package build makes the binaries and images the testbed runs, and caches
// them.
//
// What is made from what is in Kube, Containerd, Tools and Images. Each result
// is a directory of the cache whose name ends in a hash of all that determines
// it, so a second use does not even start the go tool, and two checkouts of the
// project share what they have in common.
package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Cache makes things once.
type Cache struct {
	Dir      string                           // where results lie
	Source   string                           // the directory of the module github.com/quarry-storage/quarry/test
	Progress func(format string, args ...any) // told what goes on; a line each
}

// CacheDir is the default place of the cache: $QUARRY_TESTBED_CACHE, or
// quarry-testbed in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("QUARRY_TESTBED_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory (QUARRY_TESTBED_CACHE can name one): %w", err)
	}
	return filepath.Join(dir, "quarry-testbed"), nil
}

// SourceDir finds the test module's directory, where the modules to build lie:
// from the working directory upwards, or where this program was compiled.
func SourceDir() (string, error) {
	var candidates []string
	if dir, err := os.Getwd(); err == nil {
		for ; dir != "/"; dir = filepath.Dir(dir) {
			candidates = append(candidates, dir, filepath.Join(dir, "test"))
		}
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		candidates = append(candidates, filepath.Dir(filepath.Dir(filepath.Dir(file))))
	}
	for _, dir := range candidates {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(content, []byte("module github.com/quarry-storage/quarry/test\n")) {
			return dir, nil
		}
	}
	return "", errors.New("the testbed's sources are not here: run it inside a checkout of the project")
}

// artifact is something to make.
type artifact struct {
	name string
	what string // for people
	key  *key
	make func(ctx context.Context, dir string) error
}

// get returns the directory of the artifact, which it makes if it is not in the
// cache.
func (c *Cache) get(ctx context.Context, a artifact) (string, error) {
	sum, err := a.key.sum()
	if err != nil {
		return "", fmt.Errorf("make %s: %w", a.name, err)
	}
	dir := filepath.Join(c.Dir, a.name+"-"+sum)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := c.lock(ctx, a)
	if err != nil {
		return "", fmt.Errorf("make %s: %w", a.name, err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // somebody else made it while we waited
	}
	started := time.Now()
	c.Progress("%s: making %s (kept in %s for the next time)", a.name, a.what, c.Dir)
	temporary := filepath.Join(c.Dir, a.name+".tmp") // one only, thanks to the lock
	if err := os.RemoveAll(temporary); err != nil {
		return "", fmt.Errorf("make %s: %w", a.name, err)
	}
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return "", fmt.Errorf("make %s: %w", a.name, err)
	}
	if err := a.make(ctx, temporary); err != nil {
		return "", fmt.Errorf("make %s: %w", a.name, err)
	}
	if err := os.Rename(temporary, dir); err != nil {
		return "", fmt.Errorf("make %s: %w", a.name, err)
	}
	c.Progress("%s: made in %s", a.name, time.Since(started).Round(time.Second))
	return dir, nil
}

// lock keeps two builds of one artifact apart. The kernel drops the lock with
// its holder.
func (c *Cache) lock(ctx context.Context, a artifact) (func(), error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(c.Dir, a.name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for waited := false; ; waited = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		if !waited {
			c.Progress("%s: somebody else is making it: waiting for that", a.name)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// key collects what determines an artifact.
type key struct {
	parts []string
	err   error
}

// newKey begins with what determines everything: the toolchain and the machine.
func newKey(parts ...string) *key {
	return &key{parts: append([]string{runtime.Version(), runtime.GOOS, runtime.GOARCH}, parts...)}
}

func (k *key) add(parts ...string) *key {
	k.parts = append(k.parts, parts...)
	return k
}

// files adds the names (relative to dir) and contents of a module's files,
// without those of modules inside it.
func (k *key) files(dir string, patterns ...string) *key {
	var names []string
	for _, pattern := range patterns {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err == nil && len(matches) == 0 {
			err = fmt.Errorf("%s: %w", filepath.Join(dir, pattern), fs.ErrNotExist)
		}
		k.err = errors.Join(k.err, err)
		names = append(names, matches...)
	}
	slices.Sort(names)
	for _, name := range names {
		content, err := os.ReadFile(name)
		k.err = errors.Join(k.err, err)
		relative, err := filepath.Rel(dir, name)
		k.err = errors.Join(k.err, err)
		k.add(relative, string(content))
	}
	return k
}

func (k *key) sum() (string, error) {
	hash := sha256.New()
	for _, part := range k.parts {
		fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(hash.Sum(nil))[:16], k.err
}

package csi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSocketPath is sun_path without its NUL (unix(7)), less what the temporary
// name adds.
const maxSocketPath = 107 - len(newSuffix)

const newSuffix = ".new"

// SocketPath reads the path in an endpoint: unix:///path, unix:/path or the
// path itself.
func SocketPath(endpoint string) (string, error) {
	path := endpoint
	if rest, ok := strings.CutPrefix(endpoint, "unix:"); ok {
		path = strings.TrimPrefix(rest, "//")
	}

	switch {
	case !filepath.IsAbs(path):
		return "", fmt.Errorf(
			"endpoint %q: only unix:///path is served; whoever can reach the socket can do "+
				"anything with the volumes", endpoint)
	case len(path) > maxSocketPath:
		return "", fmt.Errorf(
			"endpoint %q: the path is longer than %d bytes", endpoint, maxSocketPath)
	}

	return filepath.Clean(path), nil
}

// Listen listens at a unix socket that only the owner of the process may
// connect to. Directories that are missing are made, for the owner only. A
// socket that a process left behind is replaced, in one step and complete with
// its permissions; one that a process serves, or anything that is no socket,
// stays, and is an error.
func Listen(endpoint string) (net.Listener, error) {
	path, err := SocketPath(endpoint)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := checkStale(path); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}

	fresh := path + newSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}

	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}

	// Its name is going to change, and the next process replaces what is left.
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		return nil, errors.Join(
			fmt.Errorf("listen at %s: %w", path, err),
			l.Close(),
			os.Remove(fresh),
		)
	}

	return &listener{UnixListener: l, path: path}, nil
}

// checkStale returns nil when path is free, or a socket that no process serves.
func checkStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("there is something else, which stays: %s", st.Mode())
	}

	conn, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(errors.New("another process serves there"), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}

	return nil
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		// Only if it is still this one: after a restart another process may
		// have its own there.
		conn, dial := net.Dial("unix", l.path)
		switch {
		case dial == nil:
			err = conn.Close()
		case errors.Is(dial, unix.ECONNREFUSED):
			err = os.Remove(l.path)
		}
	}
	return err
}

// Package tenant lets a test do in a directory what the user of a volume might:
// fill it, or try to leave its quota, as root, as an ordinary user or as root
// of a user namespace.
//
// A test binary runs itself again as that user (TestMain calls Main), because a
// process of Go has many threads and changing the user of one is no test. The
// directory is handed over as a descriptor: the path to it need not be open to
// the user.
package tenant

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Who acts.
type Who int

const (
	Root Who = iota // with all capabilities the test has
	// Root without CAP_SYS_RESOURCE, as in any container that did not ask for
	// it.
	ContainerRoot
	User           // uid and gid 65534, no capabilities
	UserNamespaced // uid 65534 outside, root of a user namespace inside
)

func (w Who) String() string {
	return [...]string{"root", "root without CAP_SYS_RESOURCE", "uid 65534",
		"root of a user namespace"}[w]
}

// UID is the user of User and UserNamespaced in the initial user namespace.
const UID = 65534

// Result is what an action came to.
type Result struct {
	Done  int64         // bytes or files
	Errno syscall.Errno // 0: all was done
}

// Action acts in the current directory.
type Action func(args []string) (done int64, err error)

// environment holds the action's name in the process that acts.
const environment = "QUARRY_TEST_TENANT"

// Main runs the tests, or in the process that acts, the action, one of
// Actions or of the package's own. It does not return.
func Main(m *testing.M, own map[string]Action) {
	name, acting := os.LookupEnv(environment)
	if !acting {
		os.Exit(m.Run())
	}

	action := Actions[name]
	if a, ok := own[name]; ok {
		action = a
	}

	if err := act(action, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	os.Exit(0)
}

// Run runs an action in the directory dir as somebody. What the action meets is
// in the result; that it could not be run at all fails the test.
func Run(t testing.TB, who Who, dir *os.File, action string, args ...string) Result {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), environment+"="+action)
	cmd.ExtraFiles = []*os.File{dir} // descriptor 3
	var stderr strings.Builder
	cmd.Stderr = &stderr
	switch who {
	case Root:
	case ContainerRoot:
		cmd.Env = append(cmd.Env, dropResource+"=yes")
	case User:
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: UID, Gid: UID},
		}
	case UserNamespaced:
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: UID, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: UID, Size: 1}},
			Credential:  &syscall.Credential{},
		}
	}

	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s as %s: %v: %s", action, who, err, stderr.String())
	}

	var r Result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%s as %s: %v: %s", action, who, err, out)
	}

	t.Logf("%s %s as %s: %d done, errno %d (%v)", action, strings.Join(args, " "), who, r.Done,
		r.Errno, r.Errno)
	return r
}

const dropResource = "QUARRY_TEST_DROP_RESOURCE"

func act(action Action, args []string) error {
	if action == nil {
		return errors.New("no such action")
	}

	// Capabilities belong to threads.
	runtime.LockOSThread()
	if os.Getenv(dropResource) != "" {
		if err := dropCapability(unix.CAP_SYS_RESOURCE); err != nil {
			return err
		}
	}

	if err := unix.Fchdir(3); err != nil {
		return fmt.Errorf("enter the directory: %w", err)
	}

	var r Result
	var err error
	r.Done, err = action(args)
	if err != nil && !errors.As(err, &r.Errno) {
		return err
	}

	return json.NewEncoder(os.Stdout).Encode(r)
}

func dropCapability(capability uint) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}

	data[capability/32].Effective &^= 1 << (capability % 32)
	data[capability/32].Permitted &^= 1 << (capability % 32)
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}

	return nil
}

// Package node runs one machine of the testbed: a set of namespaces (mount,
// pid, net, ipc, uts) with a disk of its own to boot from, and a PID 1 that is
// this very program, executed again.
//
// PID 1 mounts the node's disks, makes the file tree, reaps orphans, and starts
// and stops the programs it is told to over a unix socket. It restarts nothing
// by itself, and it knows nothing of Kubernetes. When it dies, the kernel kills
// every process of the node and drops every mount: a power cut. See
// pid_namespaces(7).
//
// A node shares with the machine: the kernel with its loop devices and cgroups,
// /dev (but not /dev/shm) and, read-only, /usr. /etc is an overlay over the
// machine's. Everything else is the node's own and on its disk.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Boot is everything PID 1 needs to know to bring the node up.
type Boot struct {
	Hostname string
	ID       string // what /proc/sys/kernel/random/boot_id reads in this life of the node
	Dir      string // the node's directory on the machine: see Node
	System   Disk   // mounted as the root
	Disks    []Disk
	Binds    []Bind
	Files    []File   // written at every boot
	Wipe     []string // directories removed before anything starts
	Path     string   // $PATH of the node's programs
}

// Disk is a filesystem on a block device and where it is mounted.
type Disk struct {
	Device     string // "/dev/loop7"
	Path       string // mount point in the node
	Filesystem string // "ext4"
	Options    string // mount options of the filesystem, comma separated
}

// Bind is a directory of the machine that the node sees, read-only.
type Bind struct{ Source, Target string }

// File is a file in the node.
type File struct {
	Path    string
	Content []byte
	Mode    os.FileMode
}

// Node names a node and its directory on the machine, which holds
//
//	mnt/      an empty directory: where PID 1 mounts the root, seen by the node only
//	log/      one log file for each program, and init.log
//	control   PID 1's socket
type Node struct {
	Name string
	Dir  string
}

// argv0 marks PID 1 of a node among the machine's processes; the node's
// directory follows as the only argument.
const argv0 = "quarry-testbed-node"

// A program that imports this package becomes PID 1 of a node when it is
// executed under that name. It happens here, before main, because the programs
// are many: the command, and every test binary.
func init() {
	if os.Args[0] == argv0 && os.Getpid() == 1 {
		runInit()
	}
}

// Starting is a node whose PID 1 is there but waits for Boot.
type Starting struct {
	Node
	PID    int // in the machine's pid namespace
	boot   *os.File
	answer *os.File
	exited chan error
}

// Start makes the node's namespaces with PID 1 in them, which then waits for
// Boot. If this process dies before Boot, PID 1 ends too.
func (n Node) Start() (*Starting, error) {
	for _, dir := range []string{"mnt", "log"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("start %s: %w", n.Name, err)
		}
	}
	if err := os.Remove(n.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	log, err := os.OpenFile(n.Log("init"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer log.Close()
	bootReader, bootWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer bootReader.Close()
	answerReader, answerWriter, err := os.Pipe()
	if err != nil {
		bootWriter.Close()
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer answerWriter.Close()
	command := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{argv0, n.Dir}, Dir: "/", Env: []string{},
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{bootReader, answerWriter},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		},
	}
	if err := command.Start(); err != nil {
		bootWriter.Close()
		answerReader.Close()
		return nil, fmt.Errorf("start %s: make its namespaces: %w", n.Name, err)
	}
	s := &Starting{Node: n, PID: command.Process.Pid, boot: bootWriter, answer: answerReader,
		exited: make(chan error, 1)}
	go func() { s.exited <- command.Wait() }() // so that no zombie is left when the node dies before this process
	return s, nil
}

// Boot lets PID 1 go on and returns when the node's file tree stands and its
// control socket is served. When ctx ends or the boot fails, the node is dead.
func (s *Starting) Boot(ctx context.Context, boot Boot) error {
	defer s.answer.Close()
	boot.Dir = s.Dir
	err := json.NewEncoder(s.boot).Encode(boot)
	s.boot.Close()
	if err == nil {
		s.answer.SetReadDeadline(deadline(ctx)) //nolint:errcheck // a pipe has deadlines
		var failure []byte
		failure, err = io.ReadAll(s.answer)
		if err == nil && string(failure) != answerReady {
			err = errors.New(cmpOr(string(failure), "PID 1 ended"))
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("boot %s: %w (log: %s)", s.Name, err, s.Log("init")), s.Cancel())
	}
	return nil
}

// Cancel ends a node that has not booted.
func (s *Starting) Cancel() error {
	s.boot.Close()
	return s.Kill(context.Background())
}

const answerReady = "ready"

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func deadline(ctx context.Context) time.Time {
	t, _ := ctx.Deadline() // the zero time means none
	return t
}

// Log is the path of a program's log on the machine.
func (n Node) Log(program string) string { return filepath.Join(n.Dir, "log", program+".log") }

func (n Node) socket() string { return filepath.Join(n.Dir, "control") }

// PID returns the node's PID 1 in the machine's pid namespace, or 0 when the
// node is not running.
func (n Node) PID() (int, error) {
	running, err := Running(n.Dir)
	return running[n.Dir], err
}

// Running returns PID 1 of every node whose directory is dir or lies below it,
// by that directory. It asks the kernel, not a record, so it is right after any
// crash.
func Running(dir string) (map[string]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	running := map[string]int{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		commandLine, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue // ended since
		}
		arguments := strings.Split(string(commandLine), "\x00")
		if len(arguments) < 2 || arguments[0] != argv0 || !isPID1(pid) {
			continue
		}
		if arguments[1] == dir || strings.HasPrefix(arguments[1], dir+"/") {
			running[arguments[1]] = pid
		}
	}
	return running, nil
}

// isPID1 says whether the process is the first of a pid namespace below ours:
// the last number of the line NSpid in /proc/PID/status is its number there.
// See proc_pid_status(5).
func isPID1(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		if numbers, ok := strings.CutPrefix(string(line), "NSpid:"); ok {
			fields := strings.Fields(numbers)
			return len(fields) > 1 && fields[len(fields)-1] == "1"
		}
	}
	return false
}

// Kill cuts the node's power: every process in it dies at once. It returns when
// all are gone. A node that is not running is no error.
func (n Node) Kill(ctx context.Context) error {
	pid, err := n.PID()
	if err != nil || pid == 0 {
		return err
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	defer unix.Close(handle)
	if again, err := n.PID(); err != nil || again != pid {
		return err // it ended before the handle was opened, and the number may be somebody else's by now
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	// PID 1 ends only after the kernel has ended everything else in its
	// namespace.
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}, 50)
		if ready > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the end of %s: %w", n.Name, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not die, some process of it hangs in the kernel: %w", n.Name, context.Cause(ctx))
		}
	}
}

// Command is a command that runs inside the node, by nsenter(1). The caller may
// set its standard files.
func (n Node) Command(ctx context.Context, path string, arguments ...string) (*exec.Cmd, error) {
	pid, err := n.PID()
	if err != nil {
		return nil, err
	}
	if pid == 0 {
		return nil, fmt.Errorf("%s is not running", n.Name)
	}
	command := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", strconv.Itoa(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, arguments...)...)
	command.Env = environment(path)
	if terminal := os.Getenv("TERM"); terminal != "" {
		command.Env = append(command.Env, "TERM="+terminal)
	}
	return command, nil
}

func environment(path string) []string {
	return []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8"}
}

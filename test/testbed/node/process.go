package node

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is a long-running program of a node. Its output goes to the log of
// its name.
type Program struct {
	Name string
	Args []string // Args[0] is looked up in the node's $PATH
}

// Status is what PID 1 knows of a program it started.
type Status struct {
	Name    string
	Running bool
	PID     int    // in the node's pid namespace; of the last run when it has ended
	Exit    string // how it ended: "exit status 1"; empty while it runs
}

// processes are the programs of the node that PID 1 runs in.
type processes struct {
	logs        *os.Root
	environment []string

	mu   sync.Mutex // held over fork and registration, so that the reaper knows every child it meets
	byID map[int]*process
	all  []*process // in the order of their first start
}

type process struct {
	Status
	program Program
	ended   chan struct{} // closed by the reaper
}

func newProcesses(logs *os.Root, environment []string) *processes {
	return &processes{logs: logs, environment: environment, byID: map[int]*process{}}
}

// reap buries every process that ends: our own children, and the orphans of the
// node, whose parent PID 1 becomes.
func (p *processes) reap() {
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	for {
		var how unix.WaitStatus
		pid, err := unix.Wait4(-1, &how, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case pid <= 0: // nobody has ended, or nobody is there
			<-deaths
		default:
			p.bury(pid, how)
		}
	}
}

func (p *processes) bury(pid int, how unix.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	child := p.byID[pid]
	if child == nil {
		return // an orphan
	}
	delete(p.byID, pid)
	child.Running = false
	if child.Exit = fmt.Sprintf("exit status %d", how.ExitStatus()); how.Signaled() {
		child.Exit = how.Signal().String()
	}
	log.Printf("%s (pid %d) ended: %s", child.Name, pid, child.Exit)
	close(child.ended)
}

// start starts the program; one that runs already is left alone.
func (p *processes) start(program Program) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	child := p.find(program.Name)
	if child != nil && child.Running {
		return nil
	}
	path, err := exec.LookPath(program.Args[0])
	if err != nil {
		return err
	}
	output, err := p.logs.OpenFile(program.Name+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer output.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	// Not os/exec: its Wait would compete with the reaper.
	pid, err := syscall.ForkExec(path, program.Args, &syscall.ProcAttr{
		Dir: "/", Env: p.environment, Files: []uintptr{null.Fd(), output.Fd(), output.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", program.Name, err)
	}
	if child == nil {
		child = &process{}
		p.all = append(p.all, child)
	}
	*child = process{Status: Status{Name: program.Name, Running: true, PID: pid}, program: program,
		ended: make(chan struct{})}
	p.byID[pid] = child
	log.Printf("%s started (pid %d)", program.Name, pid)
	return nil
}

// stop sends the program a signal and waits for its end; after patience it is
// killed. One that does not run is no error.
func (p *processes) stop(name string, sig syscall.Signal, patience time.Duration) error {
	p.mu.Lock()
	child := p.find(name)
	if child == nil {
		p.mu.Unlock()
		return fmt.Errorf("no program %s was ever started here", name)
	}
	if !child.Running {
		p.mu.Unlock()
		return nil
	}
	ended := child.ended
	err := syscall.Kill(child.PID, sig) // not buried yet, so the number is still its own
	p.mu.Unlock()
	if err != nil {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(patience):
	}
	log.Printf("%s did not end within %s of %s: it is killed", name, patience, sig)
	return p.stop(name, syscall.SIGKILL, time.Hour)
}

// startAgain starts a program as it was started before.
func (p *processes) startAgain(name string) error {
	p.mu.Lock()
	child := p.find(name)
	p.mu.Unlock()
	if child == nil {
		return fmt.Errorf("no program %s was ever started here", name)
	}
	return p.start(child.program)
}

func (p *processes) status() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []Status
	for _, child := range p.all {
		list = append(list, child.Status)
	}
	return list
}

// find needs p.mu.
func (p *processes) find(name string) *process {
	for _, child := range p.all {
		if child.Name == name {
			return child
		}
	}
	return nil
}

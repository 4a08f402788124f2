package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// order is what PID 1 is asked to do: one JSON object each way on a connection
// of its own. Exactly one field is set; none asks for the programs' status,
// which every answer has.
type order struct {
	Start      *Program `json:",omitempty"`
	StartAgain string   `json:",omitempty"`
	Stop       string   `json:",omitempty"`
	Signal     syscall.Signal
	Mount      *Disk  `json:",omitempty"`
	Unmount    string `json:",omitempty"`
}

type answer struct {
	Error    string `json:",omitempty"`
	Programs []Status
}

// stopPatience is how long a program may take to end after the signal that asks
// for it.
const stopPatience = 30 * time.Second

func (p *processes) serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Printf("accept: %v", err)
			return
		}
		go func() {
			defer connection.Close()
			var o order
			if err := json.NewDecoder(connection).Decode(&o); err != nil {
				log.Printf("read an order: %v", err)
				return
			}
			var a answer
			if err := p.obey(o); err != nil {
				a.Error = err.Error()
			}
			a.Programs = p.status()
			json.NewEncoder(connection).Encode(a) //nolint:errcheck // who asked may be gone
		}()
	}
}

func (p *processes) obey(o order) error {
	switch {
	case o.Start != nil:
		return p.start(*o.Start)
	case o.StartAgain != "":
		return p.startAgain(o.StartAgain)
	case o.Stop != "":
		return p.stop(o.Stop, o.Signal, stopPatience)
	case o.Mount != nil:
		return o.Mount.mountAt(o.Mount.Path)
	case o.Unmount != "":
		if err := unix.Unmount(o.Unmount, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", o.Unmount, err)
		}
	}
	return nil
}

// ask gives PID 1 an order and waits for the answer.
func (n Node) ask(ctx context.Context, o order) ([]Status, error) {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "unix", n.socket())
	if err != nil {
		return nil, fmt.Errorf("%s is not running: %w", n.Name, err)
	}
	defer connection.Close()
	stop := context.AfterFunc(ctx, func() { connection.Close() })
	defer stop()
	if err := json.NewEncoder(connection).Encode(o); err != nil {
		return nil, fmt.Errorf("ask %s: %w", n.Name, err)
	}
	var a answer
	if err := json.NewDecoder(connection).Decode(&a); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ask %s: %w", n.Name, err)
	}
	if a.Error != "" {
		return a.Programs, fmt.Errorf("%s: %w", n.Name, errors.New(a.Error))
	}
	return a.Programs, nil
}

// Run starts a program; one that runs already is left alone.
func (n Node) Run(ctx context.Context, program Program) error {
	_, err := n.ask(ctx, order{Start: &program})
	return err
}

// Stop sends the program the signal and returns when it has ended; one that
// ignores the signal is killed after 30 seconds. One that does not run is no
// error, one that was never started is.
func (n Node) Stop(ctx context.Context, program string, signal syscall.Signal) error {
	_, err := n.ask(ctx, order{Stop: program, Signal: signal})
	return err
}

// RunAgain starts a program with the arguments it had before.
func (n Node) RunAgain(ctx context.Context, program string) error {
	_, err := n.ask(ctx, order{StartAgain: program})
	return err
}

// Programs returns the status of every program that was started in this life of
// the node.
func (n Node) Programs(ctx context.Context) ([]Status, error) { return n.ask(ctx, order{}) }

// Mount mounts a disk where it says, so that containers which asked for it
// (HostToContainer) see it too.
func (n Node) Mount(ctx context.Context, disk Disk) error {
	_, err := n.ask(ctx, order{Mount: &disk})
	return err
}

// Unmount unmounts what is mounted at path. The error of one in use is EBUSY's
// text.
func (n Node) Unmount(ctx context.Context, path string) error {
	_, err := n.ask(ctx, order{Unmount: path})
	return err
}

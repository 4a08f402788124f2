package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// doomedEnvironment holds what a process of its own is to do, and when it is to
// be killed.
const doomedEnvironment = "QUARRY_TEST_DOOMED"

// doom is the life of a store that dies at a step.
type doom struct {
	Pools   []string
	Devices string
	Op      string
	Request Request
	// Size is what grow grows to, in bytes.
	Size int64
	// Step is the number of the step, from 1 on, before which the process is
	// killed (SIGKILL). 0: it lives.
	Step int
}

// doomed runs in the process that dies. It does not return.
func doomed(plan string) {
	var d doom
	if err := json.Unmarshal([]byte(plan), &d); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := d.live(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (d doom) live() error {
	steps := 0
	armed := d.Op == opStart
	s := New(Options{Pools: poolsAt(d.Pools), DeviceDir: d.Devices, ByClaimIndex: true, Fault: func(step string) error {
		if !armed {
			return nil
		}
		if steps++; steps == d.Step {
			fmt.Fprintf(os.Stderr, "killed before: %s\n", step)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // this thread may go on for an instant
		}
		return nil
	}})
	for _, p := range s.opts.Pools {
		s.Expect(p.Name, disk.Expectation{MayCreate: true})
	}
	ctx := context.Background()
	s.Refresh(ctx)
	armed = true
	return do(ctx, s, d.Op, d.Request, d.Size)
}

// Operations.
const (
	opStart   = "start" // after a reboot
	opCreate  = "create"
	opGrow    = "grow"
	opDelete  = "delete"
	opRestore = "restore"
	opFree    = "free"
	// opDescribe says that another claim has the volume by now
	opDescribe = "describe"
	opPurge    = "purge" // delete for good, and free
	// opBeside makes a volume, and deletes it when its input ends
	opBeside = "beside"
)

func do(ctx context.Context, s *Store, op string, r Request, size int64) error {
	var err error
	switch op {
	case opStart:
		for _, v := range s.List() {
			_, err = s.Activate(ctx, v.ID)
		}
	case opCreate:
		var adm []*Admission
		if adm, err = s.Admit(ctx, r); err == nil {
			_, err = s.Create(ctx, adm[0])
		}
	case opGrow:
		_, err = s.Grow(ctx, r.ID, size)
	case opDelete:
		err = deleteWhenFree(ctx, s, r.ID, keep(3600))
	case opRestore:
		_, err = s.Restore(ctx, r.ID)
	case opPurge:
		if err = deleteWhenFree(ctx, s, r.ID, purge); err == nil {
			err = s.Drain(ctx)
		}
	case opFree:
		err = s.Drain(ctx)
	case opBeside:
		if err = do(ctx, s, opCreate, r, size); err != nil {
			return err
		}
		fmt.Println("made")
		if _, err = io.Copy(io.Discard, os.Stdin); err == nil {
			err = do(ctx, s, opPurge, r, size)
		}
	case opDescribe:
		o := r.Origin
		o.ClaimName = "another"
		err = s.SetOrigin(ctx, r.ID, o)
	default:
		err = fmt.Errorf("no operation %q", op)
	}
	return err
}

// deleteWhenFree deletes as an agent does, which tries again when a volume is
// in use. Processes of other tests hold any loop device for a moment: one that
// they found free, and this one's store was faster to take.
func deleteWhenFree(ctx context.Context, s *Store, id string, how record.Deletion) error {
	for try := 1; ; try++ {
		err := s.Delete(ctx, id, how)
		var inUse *backend.InUseError
		if !errors.As(err, &inUse) || inUse.Reason != v1alpha1.ReasonDeviceHeld || try == 100 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// letGo lets go of the devices that this process keeps open: it stands for the
// one before, which is gone.
func (d doom) letGo(t testing.TB) {
	t.Helper()
	devices, err := loop.List()
	require.NoError(t, err)
	for _, dev := range devices {
		if slices.ContainsFunc(d.Pools, func(pool string) bool {
			return strings.HasPrefix(dev.BackingPath, pool+"/")
		}) {
			loop.Unpin(dev.Number)
		}
	}
}

// run lets the process live its life. It returns what it was killed before, or
// "" when it came to its end.
func (d doom) run(t testing.TB) (killedBefore string) {
	t.Helper()
	d.letGo(t)
	plan, err := json.Marshal(d)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), doomedEnvironment+"="+string(plan))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%s: %v: %s", d.Op, err, out)
	_, step, _ := cutLast(string(out), "killed before: ")
	return step
}

// beside starts a process that lives beside this one, and returns when it has
// made its volume. What it returns has the process delete that and end.
func (d doom) beside(t testing.TB) (end func()) {
	t.Helper()
	plan, err := json.Marshal(d)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), doomedEnvironment+"="+string(plan))
	cmd.Stderr = t.Output()
	input, err := cmd.StdinPipe()
	require.NoError(t, err)
	output, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var ended error
	stop := sync.OnceFunc(func() {
		input.Close()
		ended = cmd.Wait()
	})
	t.Cleanup(stop)
	line, err := bufio.NewReader(output).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "made\n", line)
	return func() {
		t.Helper()
		stop()
		require.NoError(t, ended)
	}
}

package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// startKubernetes starts all programs on nodes that have booted and returns
// when each node is Ready with the boot id it is given by.
func (c *Cluster) startKubernetes(ctx context.Context, boots map[string]string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not within %s", readyTimeout))
	defer cancel()
	apiServer := make(chan struct{}) // closed when there is no more need to wait for it
	group, ctx := errgroup.WithContext(ctx)
	if _, ok := boots[nodeName(1)]; ok {
		group.Go(func() error {
			defer close(apiServer)
			return c.startControlPlane(ctx)
		})
	} else {
		close(apiServer) // on a node that is up, or down on purpose
	}
	for name, bootID := range boots {
		group.Go(func() error { return c.startWorkers(ctx, name, bootID, apiServer) })
	}
	return group.Wait()
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	for _, program := range c.state.Config.controlPlane() {
		if err := c.run(ctx, nodeName(1), program); err != nil {
			return err
		}
		// The API server gives up soon when there is no etcd, and the other two
		// when there is no API server.
		if program.Name == "etcd" || program.Name == "kube-apiserver" {
			if err := c.waitHealthy(ctx, nodeName(1), program); err != nil {
				return err
			}
		}
	}
	c.log.printf("%s: the API server is ready", nodeName(1))
	return c.waitFor(ctx, nodeName(1), "kube-controller-manager", "the service account default",
		func(ctx context.Context) error {
			return c.client.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default",
				nil) // no pod can be made before
		})
}

func (c *Cluster) startWorkers(ctx context.Context, name, bootID string, apiServer <-chan struct{}) error {
	index, err := c.state.Config.nodeIndex(name)
	if err != nil {
		return err
	}
	if err := c.startRuntime(ctx, name); err != nil {
		return err
	}
	select { // kubelet tries again, but at growing intervals
	case <-apiServer:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, program := range c.state.Config.workers(index) {
		if err := c.run(ctx, name, program); err != nil {
			return err
		}
	}
	return c.waitReady(ctx, name, bootID)
}

// startRuntime starts containerd and waits until it answers.
func (c *Cluster) startRuntime(ctx context.Context, name string) error {
	runtime := c.state.Config.runtime()
	if err := c.run(ctx, name, runtime); err != nil {
		return err
	}
	return c.waitHealthy(ctx, name, runtime)
}

func (c *Cluster) run(ctx context.Context, name string, program program) error {
	if err := c.node(name).Run(ctx, program.Program); err != nil {
		return fmt.Errorf("start %s on %s: %w", program.Name, name, err)
	}
	return nil
}

// waitReady waits until the node is Ready in the life with the boot id. The
// status of its former life, which the API server still has for a while after a
// power cut, does not count.
func (c *Cluster) waitReady(ctx context.Context, name, bootID string) error {
	return c.waitFor(ctx, name, "kubelet", "the node to be Ready", func(ctx context.Context) error {
		var status nodeStatus
		if err := c.client.get(ctx, "/api/v1/nodes/"+name, &status); err != nil {
			return err
		}
		return status.ready(bootID)
	})
}

func (c *Cluster) waitHealthy(ctx context.Context, name string, program program) error {
	return c.waitFor(ctx, name, program.Name, program.Name+" to be healthy", func(ctx context.Context) error {
		return c.health(ctx, name, program)
	})
}

// health says what is wrong with a program that runs, or nil.
func (c *Cluster) health(ctx context.Context, name string, program program) error {
	if program.health != "" {
		return c.client.healthy(ctx, program.health)
	}
	if program.Name != containerdName {
		return nil
	}
	pid, err := c.node(name).PID()
	if err != nil || pid == 0 {
		return errors.Join(err, fmt.Errorf("%s is not running", name))
	}
	// The node's files as seen from the machine: proc(5), /proc/pid/root.
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "unix", filepath.Join("/proc", strconv.Itoa(pid), "root", runtimeSocket))
	if err != nil {
		return err
	}
	return connection.Close()
}

// waitFor asks again and again until there is no error. It fails when ctx ends
// or the program that it waits for does, and says what was missing last and
// which log to read.
func (c *Cluster) waitFor(ctx context.Context, name, program, what string, missing func(context.Context) error) error {
	for {
		err := missing(ctx)
		if err == nil {
			return nil
		}
		ended := c.endOf(ctx, name, program)
		if ended == nil && ctx.Err() != nil {
			ended = context.Cause(ctx)
		}
		if ended != nil {
			return fmt.Errorf("%s: wait for %s: %w (last answer: %w; log: %s)", name, what, ended, err,
				c.node(name).Log(program))
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// endOf says how the program ended, if it did.
func (c *Cluster) endOf(ctx context.Context, name, program string) error {
	statuses, err := c.node(name).Programs(ctx)
	if err != nil {
		return err
	}
	for _, status := range statuses {
		if status.Name == program && !status.Running {
			return fmt.Errorf("%s ended: %s", program, status.Exit)
		}
	}
	return nil
}

// StopProgram asks a program of a node to end and waits for it.
func (c *Cluster) StopProgram(ctx context.Context, name, program string) error {
	return c.node(name).Stop(ctx, program, syscall.SIGTERM)
}

// KillProgram ends a program of a node as a crash does.
func (c *Cluster) KillProgram(ctx context.Context, name, program string) error {
	return c.node(name).Stop(ctx, program, syscall.SIGKILL)
}

// StartProgram starts a program of a node as it was started before and returns
// when it is healthy. One that runs is left alone.
func (c *Cluster) StartProgram(ctx context.Context, name, programName string) error {
	index, err := c.state.Config.nodeIndex(name)
	if err != nil {
		return err
	}
	programs := c.state.Config.programs(index)
	i := slices.IndexFunc(programs, func(p program) bool { return p.Name == programName })
	if i < 0 {
		return fmt.Errorf("%s has no program %q", name, programName)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not within %s", readyTimeout))
	defer cancel()
	if err := c.run(ctx, name, programs[i]); err != nil {
		return err
	}
	return c.waitHealthy(ctx, name, programs[i])
}

// RestartProgram is StopProgram and StartProgram.
func (c *Cluster) RestartProgram(ctx context.Context, name, program string) error {
	if err := c.StopProgram(ctx, name, program); err != nil {
		return err
	}
	return c.StartProgram(ctx, name, program)
}

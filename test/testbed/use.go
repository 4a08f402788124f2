package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Command is a command inside a node: in its namespaces, with its files and its
// $PATH. The caller may set its standard files before it starts it.
func (c *Cluster) Command(ctx context.Context, name string, arguments ...string) (*exec.Cmd, error) {
	if _, err := c.state.Config.nodeIndex(name); err != nil {
		return nil, err
	}
	return c.node(name).Command(ctx, searchPath, arguments...)
}

// Exec runs a command inside a node and returns its standard output; the error
// has its standard error.
func (c *Cluster) Exec(ctx context.Context, name string, arguments ...string) ([]byte, error) {
	command, err := c.Command(ctx, name, arguments...)
	if err != nil {
		return nil, err
	}
	return output(command, name+": "+strings.Join(arguments, " "))
}

// Load puts the images of a tarball (as docker save writes, or an OCI layout)
// on all nodes, where they stay.
func (c *Cluster) Load(ctx context.Context, tarball string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range c.Nodes() {
		group.Go(func() error { return c.loadOn(ctx, name, tarball) })
	}
	return group.Wait()
}

func (c *Cluster) loadOn(ctx context.Context, name, tarball string) error {
	file, err := os.Open(tarball) // streamed: the node does not see the machine's files
	if err != nil {
		return fmt.Errorf("load an image: %w", err)
	}
	defer file.Close()
	command, err := c.Command(ctx, name, "ctr", "--namespace=k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	command.Stdin = file
	if _, err := output(command, "load "+tarball+" on "+name); err != nil {
		return err
	}
	return nil
}

// loadAll puts every image of a directory on nodes whose containerd is about to
// start.
func (c *Cluster) loadAll(ctx context.Context, dir string) error {
	tarballs, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range c.Nodes() {
		group.Go(func() error {
			if err := c.startRuntime(ctx, name); err != nil {
				return err
			}
			for _, tarball := range tarballs {
				if err := c.loadOn(ctx, name, tarball); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// KubectlCommand is a kubectl command on the machine, with the cluster's
// kubeconfig.
func (c *Cluster) KubectlCommand(ctx context.Context, arguments ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, filepath.Join(c.state.Kube, "kubectl"), arguments...)
	command.Env = c.environment()
	return command
}

// Kubectl runs kubectl and returns its standard output; the error has its
// standard error.
func (c *Cluster) Kubectl(ctx context.Context, arguments ...string) ([]byte, error) {
	return output(c.KubectlCommand(ctx, arguments...), "kubectl "+strings.Join(arguments, " "))
}

// HelmCommand is a helm command on the machine, with the cluster's kubeconfig
// and its settings in the testbed's directory. The first one may have to build
// helm.
func (c *Cluster) HelmCommand(ctx context.Context, arguments ...string) (*exec.Cmd, error) {
	helm, err := c.Tool(ctx, "helm")
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, helm, arguments...)
	command.Env = c.environment()
	for _, kind := range []string{"CACHE", "CONFIG", "DATA"} {
		command.Env = append(command.Env, "HELM_"+kind+"_HOME="+filepath.Join(c.dir, "helm", strings.ToLower(kind)))
	}
	return command, nil
}

// Helm runs helm and returns its standard output; the error has its standard
// error.
func (c *Cluster) Helm(ctx context.Context, arguments ...string) ([]byte, error) {
	command, err := c.HelmCommand(ctx, arguments...)
	if err != nil {
		return nil, err
	}
	return output(command, "helm "+strings.Join(arguments, " "))
}

// Tool is the path of a program of the tools module, such as csi-sanity, which
// is built if need be.
func (c *Cluster) Tool(ctx context.Context, name string) (string, error) {
	cache, err := Cache(c.log.out)
	if err != nil {
		return "", err
	}
	return cache.Tool(ctx, name)
}

// Peer is the path of a program of the peers module, a provisioner to compare
// with, which is built if need be.
func (c *Cluster) Peer(ctx context.Context, name string) (string, error) {
	cache, err := Cache(c.log.out)
	if err != nil {
		return "", err
	}
	dir, err := cache.Peers(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

// Root is where the machine sees a running node's files.
func (c *Cluster) Root(name string) (string, error) {
	if _, err := c.state.Config.nodeIndex(name); err != nil {
		return "", err
	}
	pid, err := c.node(name).PID()
	if err == nil && pid == 0 {
		err = errors.New("it is off")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Sprintf("/proc/%d/root", pid), nil
}

// Logs returns the paths of a node's logs on the machine: that of one program,
// or all of them.
func (c *Cluster) Logs(name, program string) ([]string, error) {
	if _, err := c.state.Config.nodeIndex(name); err != nil {
		return nil, err
	}
	all, err := filepath.Glob(c.node(name).Log("*"))
	if err != nil || program == "" {
		return all, err
	}
	log := c.node(name).Log(program)
	if !slices.Contains(all, log) {
		return nil, fmt.Errorf("%s has no log of %q", name, program)
	}
	return []string{log}, nil
}

// environment lets programs on the machine reach the cluster, past any proxy.
func (c *Cluster) environment() []string {
	noProxy := strings.Trim(os.Getenv("NO_PROXY")+","+Subnet(), ",")
	return append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "NO_PROXY="+noProxy, "no_proxy="+noProxy)
}

// output runs the command and returns what it wrote; what it complained of goes
// into the error.
func output(command *exec.Cmd, what string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, io.Writer(&stderr)
	err := command.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if message := strings.TrimSpace(stderr.String()); message != "" {
		err = errors.Join(err, errors.New(message))
	}
	return stdout.Bytes(), fmt.Errorf("%s: %w", what, err)
}

// ProgramStatus is one line of Status.
type ProgramStatus struct{ Node, Program, State string }

// Status says of every program of every node whether it runs and is healthy.
func (c *Cluster) Status(ctx context.Context) []ProgramStatus {
	var list []ProgramStatus
	for i, name := range c.Nodes() {
		running, err := c.node(name).Programs(ctx)
		if err != nil {
			list = append(list, ProgramStatus{name, "-", "off"})
			continue
		}
		for _, program := range c.state.Config.programs(i + 1) {
			state := "not started"
			for _, status := range running {
				switch {
				case status.Name != program.Name:
				case !status.Running:
					state = "ended: " + status.Exit
				default:
					state = "healthy"
					if err := c.health(ctx, name, program); err != nil {
						state = "unhealthy: " + err.Error()
					}
				}
			}
			list = append(list, ProgramStatus{name, program.Name, state})
		}
	}
	return list
}

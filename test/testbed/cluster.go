// Package testbed runs a real Kubernetes cluster on one Linux machine, as root,
// without a registry, a daemon or a virtual machine: etcd, the control plane,
// kubelet, kube-proxy and containerd, in nodes that are namespaces of this
// machine and can lose power, disks and programs like real ones.
//
// There is one testbed per machine. Up makes it, Open finds it, Down takes it
// away without a trace, also when Up or a node was killed at any moment: what
// exists is asked of the kernel, and all that is on disk is in one directory.
package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/quarry-storage/quarry/test/debian"
	"github.com/quarry-storage/quarry/test/testbed/build"
	"github.com/quarry-storage/quarry/test/testbed/network"
	"github.com/quarry-storage/quarry/test/testbed/node"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Cluster is a cluster that is up, or may be. Its methods may be called at the
// same time as long as they are about different nodes.
type Cluster struct {
	dir    string
	state  state
	log    *reporter
	client *client // nil until the credentials exist
}

// state is what is recorded in the testbed's directory, before anything else is
// done.
type state struct {
	Config     Config
	Ready      bool   // false: Up has not finished
	Kube       string // where the binaries are
	Containerd string
}

// These errors tell in which state the testbed is.
var (
	ErrExists   = errors.New("the testbed is up already")
	ErrNotFound = errors.New("no testbed is up")
)

// Dir is the testbed's directory: $QUARRY_TESTBED_DIR, or
// /var/lib/quarry-testbed. It must be on a filesystem that loop devices can
// have images on.
func Dir() string {
	if dir := os.Getenv("QUARRY_TESTBED_DIR"); dir != "" {
		return filepath.Clean(dir)
	}
	return "/var/lib/quarry-testbed"
}

// Up makes a cluster and returns when all its nodes are Ready and have their
// images. What an unfinished Up left is taken away first; ErrExists means that
// a cluster is up. When Up fails, everything is left as it is, to be looked at,
// until Down.
func Up(ctx context.Context, config Config) (*Cluster, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the testbed makes namespaces, mounts and loop devices: it needs root")
	}
	unlock, err := lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	log := newReporter(config.Log)
	c := &Cluster{dir: Dir(), state: state{Config: config}, log: log}
	if err := c.clear(ctx); err != nil {
		return nil, err
	}
	images, err := c.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.create(ctx); err != nil {
		return nil, err
	}
	log.printf("starting %d node(s)", config.Nodes)
	boots, err := c.powerOn(ctx, config.nodeNames(), nil)
	if err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.loadAll(groupCtx, images) })
	group.Go(func() error { return c.startKubernetes(groupCtx, boots) })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	c.state.Ready = true
	if err := c.writeState(); err != nil {
		return nil, err
	}
	log.printf("%d node(s) Ready", config.Nodes)
	return c, nil
}

// Open returns the cluster that is up. The error is ErrNotFound if there is
// none.
func Open() (*Cluster, error) {
	c := &Cluster{dir: Dir(), log: newReporter(nil)}
	if err := c.readState(); err != nil {
		return nil, err
	}
	if !c.state.Ready {
		return nil, fmt.Errorf("%w: the last `up` did not finish", ErrNotFound)
	}
	if !network.MachineLinkExists() {
		return nil, fmt.Errorf("%w: the machine was rebooted since the last one", ErrNotFound)
	}
	var err error
	c.client, err = newClient(c.Kubeconfig())
	return c, err
}

// Report makes the cluster tell what goes on, for people.
func (c *Cluster) Report(to io.Writer) { c.log = newReporter(to) }

// clear takes away what a killed Up or a reboot of the machine left, and
// refuses to when it is a cluster in use.
func (c *Cluster) clear(ctx context.Context) error {
	former := &Cluster{dir: c.dir, log: c.log}
	err := former.readState()
	// The link is gone after a reboot of the machine.
	if err == nil && former.state.Ready && network.MachineLinkExists() {
		return fmt.Errorf("%w (%d nodes): take it down first, or use it", ErrExists, former.state.Config.Nodes)
	}
	left, err := Leftovers()
	if err != nil || len(left) == 0 {
		return err
	}
	c.log.printf("taking away what a former testbed left")
	return down(ctx, c.log)
}

// prepare installs and builds what is missing, and returns the images'
// directory.
func (c *Cluster) prepare(ctx context.Context) (string, error) {
	cache, err := Cache(c.log.out)
	if err != nil {
		return "", err
	}
	if err := debian.Install(ctx, cache.Progress, debian.Testbed); err != nil {
		return "", err
	}
	if c.state.Kube, err = cache.Kube(ctx); err != nil {
		return "", err
	}
	if c.state.Containerd, err = cache.Containerd(ctx); err != nil {
		return "", err
	}
	return cache.Images(ctx)
}

// Cache is the default cache of binaries.
func Cache(progress io.Writer) (*build.Cache, error) {
	dir, err := build.CacheDir()
	if err != nil {
		return nil, err
	}
	source, err := build.SourceDir()
	if err != nil {
		return nil, err
	}
	return &build.Cache{Dir: dir, Source: source, Progress: newReporter(progress).printf}, nil
}

// create makes what outlives a node's power: the directory, the credentials,
// the switch and the disks.
func (c *Cluster) create(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if err := c.writeState(); err != nil { // from here on, Down knows that the directory is the testbed's
		return err
	}
	credentials, err := newCredentials()
	if err != nil {
		return err
	}
	if err := writeFile(c.Kubeconfig(), credentials.admin); err != nil {
		return err
	}
	if c.client, err = newClient(c.Kubeconfig()); err != nil {
		return err
	}
	if err := c.network().Create(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for i := range c.state.Config.Nodes {
		group.Go(func() error { return c.createNode(ctx, i+1, credentials) })
	}
	return group.Wait()
}

// Config is what the cluster was made from.
func (c *Cluster) Config() Config { return c.state.Config }

// Nodes are the names of the nodes, running or not.
func (c *Cluster) Nodes() []string { return c.state.Config.nodeNames() }

// Kubeconfig is the path of an administrator's kubeconfig, which works from the
// machine itself.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

func (c *Cluster) network() network.Switch {
	return network.Switch{File: filepath.Join(c.dir, "switch")}
}

func (c *Cluster) node(name string) node.Node {
	return node.Node{Name: name, Dir: filepath.Join(c.dir, "nodes", name)}
}

const stateFile = "state.json"

func (c *Cluster) writeState() error {
	content, err := json.MarshalIndent(c.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(c.dir, stateFile), content)
}

func (c *Cluster) readState() error {
	content, err := os.ReadFile(filepath.Join(c.dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err == nil {
		err = json.Unmarshal(content, &c.state)
	}
	if err != nil {
		return fmt.Errorf("read the testbed's state: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole. It is not synced: after a crash of the
// machine there is no testbed left to describe.
func writeFile(path string, content []byte) error {
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// lock makes sure that one process at a time makes, resets or removes the
// testbed. An abstract socket (unix(7)) leaves no file, and is gone with its
// process.
func lock() (func(), error) {
	listener, err := net.Listen("unix", "@quarry-testbed")
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("another process is making or removing the testbed at this moment")
	}
	if err != nil {
		return nil, fmt.Errorf("lock the testbed: %w", err)
	}
	return func() { listener.Close() }, nil
}

// reporter writes progress for people, each line with the time since the
// beginning.
type reporter struct {
	out   io.Writer
	start time.Time
}

func newReporter(out io.Writer) *reporter {
	if out == nil {
		out = io.Discard
	}
	return &reporter{out: out, start: time.Now()}
}

func (r *reporter) printf(format string, arguments ...any) {
	line := fmt.Sprintf("%6.1fs  ", time.Since(r.start).Seconds()) + fmt.Sprintf(format, arguments...) + "\n"
	io.WriteString(r.out, line) //nolint:errcheck // progress is worth no failure
}

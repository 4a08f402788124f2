package csi_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/publish"
	"github.com/quarry-storage/quarry/nodeagent/standalone"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	// node is what the machine is called in these tests.
	node = "node1"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run `make test`")
	}
}

// driver is all of CSI on this machine, as `quarry standalone` has it, and a client of it.
type driver struct {
	spec.IdentityClient
	spec.ControllerClient
	spec.NodeClient
	conn  *grpc.ClientConn
	store *store.Store
	log   *logBuffer
	dir   string // for targets
}

// newDriver serves the pools until the test ends.
func newDriver(t testing.TB, change func(*csi.Server), pools ...string) *driver {
	t.Helper()
	d := &driver{log: &logBuffer{}, dir: t.TempDir()}
	log := slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var cfg []config.Pool
	for i, path := range pools {
		c, err := config.Default(path)
		require.NoError(t, err)
		p := c.Pools[0]
		p.Name, p.EnableQuota = string(rune('a'+i)), true
		p.Reserve, err = config.ParseReserve("0%")
		require.NoError(t, err)
		cfg = append(cfg, p)
	}
	d.store = store.New(store.Options{Node: node, Pools: cfg, DeviceDir: filepath.Join(t.TempDir(), "dev"), Log: log})
	for _, p := range cfg {
		d.store.Expect(p.Name, disk.Expectation{MayCreate: true})
	}
	d.store.Refresh(t.Context())
	volumes := &standalone.Volumes{Store: d.store, Node: node}
	s := &csi.Server{
		Identity:   &csi.Identity{},
		Controller: &csi.Controller{Volumes: volumes, Catalogue: volumes, Parameters: parameters.Apply},
		Node:       &csi.Node{Name: node, Volumes: &publish.Publisher{Store: d.store}, Parameters: parameters.Apply},
		Log:        log,
	}
	if change != nil {
		change(s)
	}
	conn := serve(t, s)
	d.conn = conn
	d.IdentityClient, d.ControllerClient, d.NodeClient = spec.NewIdentityClient(conn), spec.NewControllerClient(conn), spec.NewNodeClient(conn)
	t.Cleanup(func() {
		for _, v := range d.store.List() {
			require.NoError(t, (&standalone.Volumes{Store: d.store, Node: node}).Delete(context.Background(), v.ID))
		}
		require.NoError(t, d.store.Drain(context.Background()))
	})
	return d
}

// serve serves until the test ends and returns a connection.
func serve(t testing.TB, s *csi.Server) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // shorter than a test's own, for the socket's name
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := csi.Listen("unix://" + dir + "/sock")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+dir+"/sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		conn.Close()
		cancel()
		require.NoError(t, <-done)
	})
	return conn
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// filesystem makes a filesystem in an image and mounts it until the test ends.
func filesystem(t testing.TB, fstype string, size int64) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	force := map[string]string{"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[fstype]
	command(t, "mkfs."+fstype, "-q", force, image)
	device := strings.TrimSpace(command(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { command(t, "losetup", "--detach", device) })
	command(t, "mount", device, dir)
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

const (
	multiWriter  = spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	singleWriter = spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	readerOnly   = spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
)

func mountable(mode spec.VolumeCapability_AccessMode_Mode, flags ...string) *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{MountFlags: flags}}}
}

func block(mode spec.VolumeCapability_AccessMode_Mode) *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}}
}

// create makes a volume and stages it.
func (d *driver) create(t testing.TB, name string, size int64, c *spec.VolumeCapability, parameters map[string]string) string {
	t.Helper()
	resp, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*spec.VolumeCapability{c}, Parameters: parameters})
	require.NoError(t, err)
	id := resp.GetVolume().GetVolumeId()
	_, err = d.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: d.dir, VolumeCapability: c})
	require.NoError(t, err)
	return id
}

func (d *driver) target(name string) string { return filepath.Join(d.dir, name) }

// publish publishes a volume; when the test ends it is taken away again.
func (d *driver) publish(t testing.TB, id, target string, c *spec.VolumeCapability, readOnly bool) error {
	t.Helper()
	_, err := d.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: d.dir, TargetPath: target,
		VolumeCapability: c, Readonly: readOnly})
	if err == nil {
		t.Cleanup(func() {
			_, err := d.NodeUnpublishVolume(context.Background(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
			require.NoError(t, err)
		})
	}
	return err
}

func (d *driver) unpublish(t testing.TB, id, target string) error {
	t.Helper()
	_, err := d.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	return err
}

func requireCode(t testing.TB, want codes.Code, err error, text ...string) {
	t.Helper()
	require.Equal(t, want.String(), status.Code(err).String(), "%v", err)
	for _, s := range text {
		require.ErrorContains(t, err, s)
	}
}

// mountsAt counts what is mounted at a path.
func mountsAt(t testing.TB, path string) int {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(content)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			n++
		}
	}
	return n
}

// writeTo writes one aligned block to a device, past its cache.
func writeTo(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 4096), 0); err != nil {
		return err
	}
	return unix.Fsync(int(f.Fd()))
}

// dialable reports whether somebody serves at a socket.
func dialable(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err == nil
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quarry-storage/quarry/test/testbed"
)

// Shared by all tests; set by TestMain.
var (
	cluster *testbed.Cluster
	kube    kubernetes.Interface
	objects dynamic.Interface
)

const (
	quarryNamespace = "quarry-system"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("the end-to-end tests make a cluster on this machine and need root: run `make test-e2e`")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	keep := os.Getenv("QUARRY_E2E_KEEP") != ""
	if cluster, err = testbed.Open(); errors.Is(err, testbed.ErrNotFound) || err == nil && !keep {
		if err := testbed.Down(ctx, os.Stderr); err != nil {
			return 1, fmt.Errorf("end an earlier testbed: %w", err)
		}
		cluster, err = testbed.Up(ctx, testbed.Config{
			Nodes: 3, Log: os.Stderr,
			ExtraPools: []testbed.Disk{
				{Path: "/volumes-btrfs", Filesystem: "btrfs", Size: 4 << 30},
				{Path: spare, Filesystem: "ext4", Size: 1 << 30},
				// What is freed there is freed in the disk's image as well, as
				// a solid-state disk does it.
				{Path: "/mnt/disks/ssd", Filesystem: "ext4", Size: 2 << 30, MountOptions: "discard"},
				{Path: "/mnt/disks/hdd", Filesystem: "ext4", Size: 2 << 30},
				{Path: "/mnt/disks/small", Filesystem: "ext4", Size: 1 << 30},
			},
		})
	}
	if err != nil {
		return 1, err
	}
	if !keep {
		defer func() { err = errors.Join(err, cluster.Down(ctx)) }()
	}
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig())
	if err != nil {
		return 1, err
	}
	config.QPS, config.Burst = 500, 1000
	if kube, err = kubernetes.NewForConfig(config); err != nil {
		return 1, err
	}
	if objects, err = dynamic.NewForConfig(config); err != nil {
		return 1, err
	}
	if err := loadSidecars(ctx); err != nil {
		return 1, err
	}
	if err := install(ctx); err != nil {
		return 1, err
	}
	code = m.Run()
	return code, verifyNodes(ctx)
}

// verifyNodes has `quarry verify` look at every node: disks, devices, mounts
// and objects.
func verifyNodes(ctx context.Context) error {
	var errs []error
	for _, node := range cluster.Nodes() {
		pod, err := cluster.Kubectl(ctx, "get", "pods", "-n", quarryNamespace, "-l",
			"app.kubernetes.io/component=agent",
			"--field-selector", "spec.nodeName="+node+",status.phase=Running", "-o", "name")
		if err != nil {
			return err
		}
		out, err := cluster.Kubectl(ctx, "exec", "-n", quarryNamespace, strings.TrimSpace(string(pod)), "--", "/quarry",
			"verify", "--cluster", "--node-name", node)
		if err != nil {
			errs = append(errs, fmt.Errorf("quarry verify on %s: %w\n%s", node, err, out))
		}
	}
	return errors.Join(errs...)
}

// install loads the image and installs the chart, or upgrades what is
// installed.
func install(ctx context.Context) error {
	tarball, err := filepath.Abs("../../dist/quarry-image.tar")
	if err != nil {
		return err
	}
	if _, err := os.Stat(tarball); err != nil {
		return fmt.Errorf("the image is not there; `make image` makes it: %w", err)
	}
	if err := cluster.Load(ctx, tarball); err != nil {
		return err
	}
	_, err = cluster.Helm(ctx, "upgrade", "--install", "quarry", "../../charts/quarry", "--namespace", quarryNamespace,
		"--create-namespace",
		"--values", "values.yaml", "--wait", "--timeout", "3m")
	if err != nil {
		return err
	}
	// Helm counts a DaemonSet as ready while as many pods are missing as an
	// update may take down.
	_, err = cluster.Kubectl(ctx, "rollout", "status", "-n", quarryNamespace, "daemonset/quarry-agent",
		"--timeout", "2m")
	return err
}

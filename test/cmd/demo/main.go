// Command demo shows Quarry at work: a real Kubernetes on this machine, the
// chart, and the EaseMesh control plane (three etcd members, each on its own
// node's disk). It shows what a person would look at, and fails if any of it is
// not so. The cluster stays up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/quarry-storage/quarry/test/testbed"
)

func main() {
	nodes := flag.Int("nodes", 3, "nodes of the cluster: 3 or more, one for each member")
	image := flag.String("image", "", "the tarball that `make image` makes")
	root := flag.String("root", "..", "the repository")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *nodes, *image, *root); err != nil {
		fmt.Fprintf(os.Stderr, "\n%s %v\n\nThe cluster, if it came up, is left as it is: look around with\n  go -C "+
			"test run ./cmd/testbed kubectl get events -A\n  go -C test run ./cmd/testbed logs node1\nand end it "+
			"with\n  make demo-down\n", bad("FAILED:"), err)
		os.Exit(1)
	}
}

func run(ctx context.Context, nodes int, image, root string) error {
	if os.Geteuid() != 0 {
		return errors.New("the demo makes a cluster out of namespaces, mounts and loop devices, and needs root")
	}
	if nodes < 3 {
		return fmt.Errorf("--nodes %d: the example has three members on three nodes", nodes)
	}
	start := time.Now()
	d := &demo{ctx: ctx, root: root}
	steps := []struct {
		title string
		do    func() error
	}{
		{"A real Kubernetes on this machine", func() error { return d.cluster(nodes) }},
		{"Install Quarry with Helm", func() error { return d.install(image) }},
		{"The EaseMesh control plane: namespace, class, claims, StatefulSet", d.easemesh},
		{"What is there: classes, claims, volumes", d.look},
		{"Where the data is", d.disks},
		{"Write through etcd", d.write},
		{"Delete a pod: the same data again", d.deletePod},
		{"Cut a node's power: the same data again", d.reboot},
		{"Delete a claim: its directory goes", d.deleteClaim},
	}
	for i, s := range steps {
		fmt.Printf("\n%s\n", title(fmt.Sprintf("[%d/%d] %s", i+1, len(steps), s.title)))
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	kubeconfig := d.c.Kubeconfig()
	fmt.Printf(`
%s in %v. Everything shown was checked. The cluster stays up:

  export KUBECONFIG=%s
  go -C test run ./cmd/testbed kubectl get pods -A           kubectl for it (any other works as well)
  go -C test run ./cmd/testbed exec node2 -- ls -l /volumes   a look at a node's disk
  go -C test run ./cmd/testbed kubectl apply -f %s
  make demo-down                                              end it; nothing is left behind
`, good("Done"), time.Since(start).Round(time.Second), kubeconfig, absolute(filepath.Join(root, "examples/quickstart")))
	return nil
}

func absolute(path string) string {
	if p, err := filepath.Abs(path); err == nil {
		return p
	}
	return path
}

// demo is what the steps share.
type demo struct {
	ctx  context.Context
	root string
	c    *testbed.Cluster
}

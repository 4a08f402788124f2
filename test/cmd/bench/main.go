// Command bench measures Quarry beside what it is compared with, on a testbed
// of its own; see package bench.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quarry-storage/quarry/test/bench"
	"github.com/quarry-storage/quarry/test/measure"
)

func main() {
	// Where the tools of an administrator are, also for those whose shell does
	// not look there (su without -).
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin") //nolint:errcheck // a valid name
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) == 3 && os.Args[1] == "floor" {
		return floor(ctx, os.Args[2])
	}
	only := flag.String("bench", "", "what to measure, with commas: bind, peers, pods, io, delete, footprint, look "+
		"(default: everything)")
	rounds := flag.Int("rounds", 9, "how often each single thing is measured")
	repository := flag.String("repository", "..", "the root of the checkout")
	flag.Parse()
	root, err := filepath.Abs(*repository)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return bench.Run(ctx, bench.Config{
		Sections: strings.FieldsFunc(*only, func(r rune) bool {
			return r == ',' || r == ' '
		}), Rounds: *rounds, Repository: root, Self: self, Log: os.Stderr,
		Image: filepath.Join(root, "dist/quarry-image.tar"),
		Page:  filepath.Join(root, "docs/benchmarks.md"), Out: filepath.Join(root, "docs/benchmarks"),
	})
}

func floor(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 2000
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	measure.Floor(ctx, kube)
	return nil
}

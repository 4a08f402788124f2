// Command scale measures the controller in large clusters; see package scale.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/test/scale"
	"github.com/quarry-storage/quarry/test/testbed/build"
)

func main() {
	if child, err := scale.Child(os.Args[1:]); child {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context) error {
	nodes := flag.String("nodes", "10,100,1000", "sizes of clusters, with commas")
	volumes := flag.Int("volumes", 0, "volumes that are there in the largest of them; the others have as many on each "+
		"node (0: 20 on each node)")
	quarry := flag.String("quarry", "../bin/quarry", "the built binary")
	rounds := flag.Int("rounds", 15, "claims that are measured one after the other")
	burst := flag.Int("burst", 500, "claims that are measured at once")
	rest := flag.Duration("rest", 30*time.Second, "how long everything is left alone to see what that costs")
	limit := flag.Duration("limit", time.Hour, "how long each size may take")
	memory := flag.Int64("memory", 512, "the memory limit of the controllers' container, in MiB; the chart's "+
		"is the default")
	dir := flag.String("dir", "/dev/shm", "where etcd's data and the logs are, best in memory")
	keep := flag.Bool("keep-logs", false, "leave the directories with the logs")
	out := flag.String("o", "../docs/benchmarks", "the directory for scale.json and scale-*.svg; what is in "+
		"scale.json of other sizes stays")
	page := flag.String("page", "../docs/benchmarks.md", "the page whose block is written")
	flag.Parse()

	kube, err := programs(ctx)
	if err != nil {
		return err
	}
	binary, err := filepath.Abs(*quarry)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	report, err := scale.OpenReport(*out, *page)
	if err != nil {
		return err
	}
	sizes, err := sizesOf(*nodes)
	if err != nil {
		return err
	}
	perNode := 20.0
	if *volumes > 0 {
		perNode = float64(*volumes) / float64(slices.Max(sizes))
	}
	ctrllog.SetLogger(logr.Discard())
	for _, n := range sizes {
		config := scale.Config{
			Nodes: n, Volumes: int(perNode * float64(n)), Rounds: *rounds,
			Burst: *burst, Rest: *rest, MemoryLimit: *memory << 20,
			Quarry: binary, Kube: kube, Self: []string{self}, Log: os.Stderr,
		}
		result, err := measured(ctx, config, *dir, *limit, *keep)
		// What was measured counts, also where something broke: what breaks
		// first is what is looked for.
		if result != nil {
			if err := report.Add(result, err); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sizesOf reads numbers of nodes.
func sizesOf(list string) ([]int, error) {
	var sizes []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-nodes: %q is no number of nodes", text)
		}
		sizes = append(sizes, n)
	}
	return sizes, nil
}

// measured runs one size in a directory of its own.
func measured(ctx context.Context, config scale.Config, dir string, limit time.Duration,
	keep bool) (result *scale.Result, err error) {
	if config.Dir, err = os.MkdirTemp(dir, "quarry-scale-"); err != nil {
		return nil, err
	}
	if !keep {
		defer func() { err = errors.Join(err, os.RemoveAll(config.Dir)) }()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	return scale.Run(ctx, config)
}

// programs is the directory of Kubernetes' and etcd's programs, which are built
// if need be.
func programs(ctx context.Context) (string, error) {
	dir, err := build.CacheDir()
	if err != nil {
		return "", err
	}
	source, err := build.SourceDir()
	if err != nil {
		return "", err
	}
	progress := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	return (&build.Cache{Dir: dir, Source: source, Progress: progress}).Kube(ctx)
}

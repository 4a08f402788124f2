package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/quarry-storage/quarry/nodeagent"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

type agentFlags struct {
	logs                        logging
	kube                        kubeconfig
	csi                         csiNode
	config, node                string
	healthAddress, metricsAddrs string
	recheckEvery                time.Duration
	kubeletDir                  string
}

func newAgentCommand() *cobra.Command {
	var o agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of one node: it keeps the node's pools and volumes",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.logs.flag(cmd)
	o.kube.flag(cmd)
	o.csi.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "/etc/quarry/agent.yaml",
		"the agents' configuration: pools and what is particular to nodes")
	f.StringVar(&o.node, "node-name", "", "the name of the node")
	f.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet",
		"kubelet's root directory: a pool on the same filesystem keeps 20% free by default")
	f.StringVar(&o.healthAddress, "health-address", ":8081",
		"where /healthz and /readyz are served")
	f.StringVar(&o.metricsAddrs, "metrics-address", ":8080", "where /metrics is served")
	f.DurationVar(&o.recheckEvery, "recheck-interval", nodeagent.DefaultRecheckEvery,
		"how often it is looked whether the sizes of directory volumes are still in force")
	if err := cmd.MarkFlagRequired("node-name"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (o *agentFlags) run(ctx context.Context) error {
	log, err := o.logs.setUp()
	if err != nil {
		return err
	}
	limitMemory()
	saveMemory()
	c, err := config.LoadFile(o.config)
	if err != nil {
		return err
	}
	kube, err := o.kube.load()
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	nodeagent.ThisMachine().Log(log)
	machine := nodeagent.MachineID(log)
	disks := store.New(store.Options{Node: o.node, MachineID: machine, Pools: c.PoolsOf(o.node),
		HeavyJobs:    c.HeavyJobs,
		ByClaimIndex: c.ByClaimIndex, LockDir: disk.LockDir, KubeletDir: o.kubeletDir, Log: log})
	agent, err := nodeagent.New(nodeagent.Options{Node: o.node, MachineID: machine, Store: disks,
		Config: kube, RecheckEvery: o.recheckEvery, Registry: registry, Log: log,
		Serving: func() {
			if _, err := unmapStart(); err != nil {
				log.Debug("let go of the pages that only the start needed", "error", err)
			}
		}})
	if err != nil {
		return err
	}
	metrics := http.NewServeMux()
	metrics.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveHTTP(ctx, o.healthAddress, agent.Health()) })
	group.Go(func() error { return serveHTTP(ctx, o.metricsAddrs, metrics) })
	group.Go(func() error { return agent.Run(ctx) })
	group.Go(func() error { return o.csi.serve(ctx, o.node, disks, agent.Up(), log) })
	return group.Wait()
}

// serveHTTP serves until ctx ends. An empty address serves nothing.
func serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	if address == "" {
		return nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

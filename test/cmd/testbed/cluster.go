package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/quarry-storage/quarry/test/debian"
	"github.com/quarry-storage/quarry/test/testbed"
	"github.com/spf13/cobra"
)

func upCommand() *cobra.Command {
	config := testbed.Config{Log: os.Stderr}
	var poolSize string
	var extraPools []string
	command := &cobra.Command{
		Use:   "up",
		Short: "Make a cluster and wait until its nodes are Ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if config.Pool.Size, err = testbed.ParseSize(poolSize); err != nil {
				return err
			}
			for _, text := range extraPools {
				disk, err := testbed.ParseDisk(text)
				if err != nil {
					return err
				}
				config.ExtraPools = append(config.ExtraPools, disk)
			}
			cluster, err := testbed.Up(cmd.Context(), config)
			if err != nil {
				return err
			}
			fmt.Println(cluster.Kubeconfig())
			return nil
		},
	}
	flags := command.Flags()
	flags.IntVar(&config.Nodes, "nodes", 3, "how many nodes; node1 runs the control plane too")
	flags.StringVar(&poolSize, "pool-size", "20Gi", "size of each node's disk at /volumes; it is sparse")
	flags.StringVar(&config.Pool.Filesystem, "pool-fs", "ext4", "its filesystem: ext4, xfs or btrfs")
	flags.StringVar(&config.Pool.MountOptions, "pool-options", "", "its mount options")
	flags.StringArrayVar(&extraPools, "extra-pool", nil,
		"a further disk of each node: PATH=FILESYSTEM:SIZE[:MOUNT_OPTIONS] (repeatable)")
	flags.StringToStringVar(&config.HostnameLabels, "hostname-label", nil,
		"NODE=VALUE: the label kubernetes.io/hostname, if it shall differ from the name")
	return command
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take the cluster away, with all its data and in whatever state it is",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return testbed.Down(cmd.Context(), os.Stderr) },
	}
}

func leftoversCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "leftovers",
		Short: "List what of a testbed is on this machine, and fail if anything is",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			left, err := testbed.Leftovers()
			if err == nil && len(left) > 0 {
				fmt.Println(strings.Join(left, "\n"))
				err = fmt.Errorf("%d things", len(left))
			}
			return err
		},
	}
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the nodes and their programs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(out, "NODE\tPROGRAM\tSTATE")
			for _, status := range cluster.Status(cmd.Context()) {
				fmt.Fprintf(out, "%s\t%s\t%s\n", status.Node, status.Program, status.State)
			}
			return out.Flush()
		},
	}
}

func buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build everything that is not in the cache, and install the packages that are missing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := testbed.Cache(os.Stderr)
			if err != nil {
				return err
			}
			if err := debian.Install(cmd.Context(), cache.Progress, debian.Testbed); err != nil {
				return err
			}
			for _, get := range []func(context.Context) (string, error){cache.Kube, cache.Containerd, cache.Images} {
				dir, err := get(cmd.Context())
				if err != nil {
					return err
				}
				fmt.Println(dir)
			}
			tools, err := cache.Tools(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Println(strings.Join(tools, "\n"))
			return nil
		},
	}
}

func resetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reset-control-plane",
		Short: "Lose etcd: wipe what Kubernetes knows and let the nodes, with their pools, join a new cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			return cluster.ResetControlPlane(cmd.Context())
		},
	}
}

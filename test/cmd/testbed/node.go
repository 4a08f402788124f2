package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/quarry-storage/quarry/test/testbed"
	"github.com/spf13/cobra"
)

func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ...",
		Short:              "Run kubectl on the cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			return become(cluster.KubectlCommand(cmd.Context(), arguments...))
		},
	}
}

func helmCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "helm ...",
		Short:              "Run helm on the cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			helm, err := cluster.HelmCommand(cmd.Context(), arguments...)
			if err != nil {
				return err
			}
			return become(helm)
		},
	}
}

func kubeconfigCommand() *cobra.Command {
	return printCommand("kubeconfig", "Print the path of the cluster's kubeconfig", "%s\n")
}

func envCommand() *cobra.Command {
	return printCommand("env", `Print what lets the shell's own tools use the cluster: eval "$(testbed env)"`,
		"export KUBECONFIG=%s NO_PROXY=${NO_PROXY:+$NO_PROXY,}"+testbed.Subnet()+"\n")
}

func printCommand(use, short, format string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			fmt.Printf(format, cluster.Kubeconfig())
			return nil
		},
	}
}

func loadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "load IMAGE.tar...",
		Short: "Put the images of tarballs on all nodes",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, tarballs []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			for _, tarball := range tarballs {
				if err := cluster.Load(cmd.Context(), tarball); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func execCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "exec NODE [--] COMMAND...",
		Short: "Run a command inside a node",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			words := arguments[1:]
			if words[0] == "--" {
				words = words[1:]
			}
			inside, err := cluster.Command(cmd.Context(), arguments[0], words...)
			if err != nil {
				return err
			}
			return become(inside)
		},
	}
	command.Flags().SetInterspersed(false) // the command's flags are its own, with or without the dashes
	return command
}

func logsCommand() *cobra.Command {
	var follow bool
	command := &cobra.Command{
		Use:   "logs NODE [PROGRAM]",
		Short: "Show the logs of a node's programs, kept over its reboots",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			paths, err := cluster.Logs(arguments[0], append(arguments, "")[1])
			if err != nil {
				return err
			}
			tail := []string{"--lines=+1"}
			if follow {
				tail = []string{"--follow", "--lines=20"}
			}
			return become(exec.CommandContext(cmd.Context(), "tail", append(tail, paths...)...))
		},
	}
	command.Flags().BoolVarP(&follow, "follow", "f", false, "show the end, and what comes")
	return command
}

// powerCommand is a command that does one thing to a node.
func powerCommand(use, short string, do func(*testbed.Cluster, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use + " NODE",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			return do(cluster, cmd.Context(), arguments[0])
		},
	}
}

// programCommand is a command that does one thing to a program of a node.
func programCommand(use, short string, do func(*testbed.Cluster, context.Context, string,
	string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use + " NODE PROGRAM",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			return do(cluster, cmd.Context(), arguments[0], arguments[1])
		},
	}
}

func diskCommand() *cobra.Command {
	command := &cobra.Command{Use: "disk", Short: "Pull a node's disk out, make another, put one in"}
	command.AddCommand(
		&cobra.Command{
			Use:   "pull NODE PATH",
			Short: "Unmount a disk, for this life of the node and the next ones, and print its image",
			Args:  cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, arguments []string) error {
				cluster, err := open()
				if err != nil {
					return err
				}
				image, err := cluster.PullDisk(cmd.Context(), arguments[0], arguments[1])
				if err == nil {
					fmt.Println(image)
				}
				return err
			},
		},
		&cobra.Command{
			Use:   "new NODE PATH=FILESYSTEM:SIZE[:MOUNT_OPTIONS]",
			Short: "Make a blank disk and print its image",
			Args:  cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, arguments []string) error {
				cluster, err := open()
				if err != nil {
					return err
				}
				disk, err := testbed.ParseDisk(arguments[1])
				if err != nil {
					return err
				}
				image, err := cluster.NewDisk(cmd.Context(), arguments[0], disk)
				if err == nil {
					fmt.Println(image)
				}
				return err
			},
		},
		insertCommand(),
	)
	return command
}

func insertCommand() *cobra.Command {
	var disk testbed.Disk
	command := &cobra.Command{
		Use:   "insert NODE PATH IMAGE",
		Short: "Mount a disk's image at the path, for this life of the node and the next ones",
		Args:  cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, arguments []string) error {
			cluster, err := open()
			if err != nil {
				return err
			}
			disk.Path = arguments[1]
			if arguments[2] == "" {
				return errors.New("which image?")
			}
			return cluster.InsertDisk(cmd.Context(), arguments[0], disk, arguments[2])
		},
	}
	command.Flags().StringVar(&disk.Filesystem, "fs", "ext4", "the filesystem that is on it")
	command.Flags().StringVar(&disk.MountOptions, "options", "", "mount options")
	return command
}

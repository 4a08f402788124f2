// Command testbed runs a real Kubernetes cluster on this machine: see the
// README beside test/go.mod.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"github.com/quarry-storage/quarry/test/testbed"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	// Where the tools of an administrator are, also for those whose shell does
	// not look there (su without -).
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin") //nolint:errcheck // a valid name
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "testbed",
		Short:         "A real Kubernetes cluster on this machine, to try and test Quarry on",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		upCommand(), downCommand(), leftoversCommand(), statusCommand(), buildCommand(),
		kubectlCommand(), helmCommand(), kubeconfigCommand(), envCommand(), loadCommand(),
		execCommand(), logsCommand(), powerCommand("kill", "Cut a node's power; its disks stay",
			(*testbed.Cluster).KillNode),
		powerCommand("start", "Turn a node's power on and wait until it is Ready", (*testbed.Cluster).StartNode),
		powerCommand("reboot", "Cut a node's power, turn it on and wait until it is Ready",
			(*testbed.Cluster).RebootNode),
		programCommand("stop-program", "Stop one program of a node", (*testbed.Cluster).StopProgram),
		programCommand("start-program", "Start one program of a node again", (*testbed.Cluster).StartProgram),
		programCommand("restart-program", "Restart one program of a node", (*testbed.Cluster).RestartProgram),
		diskCommand(), resetCommand(),
	)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

// open finds the cluster and has it report to the terminal.
func open() (*testbed.Cluster, error) {
	cluster, err := testbed.Open()
	if err != nil {
		return nil, fmt.Errorf("%w; `testbed up` makes one", err)
	}
	cluster.Report(os.Stderr)
	return cluster, nil
}

// become replaces this process by the command, which so has the terminal to
// itself.
func become(command *exec.Cmd) error {
	if command.Err != nil {
		return command.Err
	}
	return fmt.Errorf("run %s: %w", strings.Join(command.Args, " "), unix.Exec(command.Path, command.Args, command.Env))
}

// Command kubectl-quarry is the kubectl plugin `kubectl quarry`: what an
// administrator does with volumes by hand.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/cmd/internal/admin"
)

// Set by the linker.
var (
	version = "dev"
	commit  string
)

// completer is the name under which kubectl looks for a program that completes
// the plugin's commands in the shell.
const completer = "kubectl_complete-quarry"

// arguments are those for the plugin: under the name completer it is asked what
// the arguments so far can go on with.
func arguments(args []string) []string {
	if filepath.Base(args[0]) == completer {
		return append([]string{cobra.ShellCompRequestCmd}, args[1:]...)
	}
	return args[1:]
}

func main() {
	// The commands say what they do; what the libraries log would stand
	// between.
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	plugin := admin.NewPlugin(version, commit)
	plugin.SetArgs(arguments(os.Args))
	err := plugin.ExecuteContext(ctx)
	if status := admin.Report(os.Stderr, "kubectl quarry", err); status != 0 {
		os.Exit(status)
	}
}

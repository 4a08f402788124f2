// Command kubectl-quarry is the kubectl plugin `kubectl quarry`: what an
// administrator does with volumes by hand.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/cmd/internal/admin"
)

// version is set by the linker.
var version = "dev"

func main() {
	// The commands say what they do; what the libraries log would stand
	// between.
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := admin.NewPlugin(version).ExecuteContext(ctx)
	if status := admin.Report(os.Stderr, "kubectl quarry", err); status != 0 {
		os.Exit(status)
	}
}

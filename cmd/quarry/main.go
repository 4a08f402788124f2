// Command quarry is all of Quarry in one binary: the controller, the agent of a
// node, and the tools that look at a node's disks.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/cmd/internal/admin"
	"github.com/quarry-storage/quarry/cmd/internal/show"
)

// Set by the linker.
var (
	version = "dev"
	commit  string
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errFindings) {
			fmt.Fprintln(os.Stderr, "quarry:", err)
		}
		os.Exit(1)
	}
}

// errFindings ends a command whose output has already said what is wrong.
var errFindings = errors.New("something does not hold")

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "quarry",
		Short: "Persistent volumes for Kubernetes out of the disks its nodes already have",
		// Errors are printed once, by main.
		SilenceUsage: true, SilenceErrors: true,
		Version: version,
	}
	root.AddCommand(newControllerCommand(), newAgentCommand(), newListCommand(), newVerifyCommand(),
		newStandaloneCommand(), show.NewVersion("quarry", version, commit),
		admin.NewRecover("quarry"), admin.NewCheckAdoption())
	return root
}

// logging is the flag that every long-running command has.
type logging struct{ level string }

func (l *logging) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.level, "log-level", "info",
		"what is logged: debug, info, warn or error")
}

// setUp sends what Quarry and the libraries log to standard error, as JSON, and
// returns the logger.
func (l *logging) setUp() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}

	handler := slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	log := slog.New(handler)
	slog.SetDefault(log)
	ctrllog.SetLogger(logr.FromSlogHandler(handler))
	klog.SetSlogLogger(log)

	return log, nil
}

// kubeconfig is the flag of commands that reach an API server.
type kubeconfig struct{ path string }

func (k *kubeconfig) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.path, "kubeconfig", "",
		"how to reach the API server; empty: as a pod of the cluster, or as kubectl does")
}

func (k *kubeconfig) load() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.path
	if k.path == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		if config, err := rest.InClusterConfig(); err == nil {
			return config, nil
		}
	}

	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}

	return config, nil
}

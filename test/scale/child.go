package scale

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/test/measure"
	"github.com/quarry-storage/quarry/test/scale/agents"
)

// Child runs one of the processes that Run starts besides the real ones, with
// the arguments it was given. It reports whether the arguments were those of
// such a process.
func Child(args []string) (bool, error) {
	if len(args) < 2 || (args[0] != "agents" && args[0] != "floor") {
		return false, nil
	}
	ctrllog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", args[1])
	if err != nil {
		return true, fmt.Errorf("read the kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 5000, 10000
	if args[0] == "floor" {
		kube, err := kubernetes.NewForConfig(config)
		if err != nil {
			return true, err
		}
		measure.Floor(ctx, kube)
		return true, nil
	}
	if len(args) != 3 {
		return true, errors.New("agents KUBECONFIG FILE")
	}
	fleet, err := agents.New(config, poolSize)
	if err != nil {
		return true, err
	}
	err = fleet.Run(ctx, func() {
		if err := os.WriteFile(args[2], nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	if ctx.Err() != nil {
		return true, nil
	}
	return true, err
}

func kuberuntimeKind(t *kuberuntime.TypeMeta) schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(t.APIVersion, t.Kind)
}

package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

// looking are the flags of commands that look at a whole cluster.
type looking struct {
	to         cluster
	in         agents
	controller string
	timeout    time.Duration
}

func (l *looking) flags(f *pflag.FlagSet) {
	l.to.flags(f)
	l.in.flags(f)
	f.StringVar(&l.controller, "controller-selector",
		"app.kubernetes.io/name=quarry,app.kubernetes.io/component=controller",
		"labels of the controller's pods")
	f.DurationVar(&l.timeout, "timeout", 30*time.Second, "how long to wait for the API server")
}

// selectors are the flags that say which pods are Quarry's.
func (l *looking) selectors() (s diagnose.Selectors, err error) {
	s.Namespace = l.in.namespace
	if s.Agent, err = labels.Parse(l.in.selector); err != nil {
		return s, fmt.Errorf("--agent-selector: %w", err)
	}
	if s.Controllers, err = labels.Parse(l.controller); err != nil {
		return s, fmt.Errorf("--controller-selector: %w", err)
	}
	return s, nil
}

// look reads the cluster, and returns the client with which it did.
func (l *looking) look(ctx context.Context) (*diagnose.Cluster, client.WithWatch, error) {
	s, err := l.selectors()
	if err != nil {
		return nil, nil, err
	}

	kube, err := l.to.connect()
	if err != nil {
		return nil, nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()

	c, err := diagnose.Look(ctx, kube, s, time.Now())
	return c, kube, err
}

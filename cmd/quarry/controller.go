package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/provisioner"
)

func newControllerCommand() *cobra.Command {
	var (
		logs     logging
		kube     kubeconfig
		o        provisioner.Options
		selector string
		endpoint string
		size     resource.QuantityValue
	)
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the cluster-wide controller: claims become volumes, volumes PersistentVolumes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := logs.setUp(); err != nil {
				return err
			}

			limitMemory()
			saveMemory()
			config, err := kube.load()
			if err != nil {
				return err
			}
			if o.AgentLabels, err = labels.ConvertSelectorToLabelsMap(selector); err != nil {
				return fmt.Errorf("--agent-selector: %w", err)
			}
			if o.TemplateNodeSize = size.Value(); o.TemplateNodeSize < 0 {
				return fmt.Errorf("--template-node-size: %s is less than nothing", size.String())
			}
			if endpoint != "" {
				o.ServeCSI = func(ctx context.Context, door *provisioner.CSI) error {
					return serveController(ctx, endpoint, door)
				}
			}

			return provisioner.Run(cmd.Context(), config, o)
		},
	}
	logs.flag(cmd)
	kube.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Namespace, "namespace", "", "the namespace Quarry is installed in")
	f.StringVar(&selector, "agent-selector",
		"app.kubernetes.io/name=quarry,app.kubernetes.io/component=agent",
		"labels of the agents' pods")

	f.StringVar(&o.LeaseName, "lease-name", "quarry-controller",
		"the lease that the replicas elect their leader with")

	f.StringVar(&o.Deployment, "deployment", "",
		"the controller's own Deployment, with which the capacity objects are to go "+
			"(empty: with none)")

	f.StringVar(&endpoint, "csi-endpoint", "",
		"the unix socket that the CSI controller service is served at (empty: it is not)")

	f.IntVar(&o.Workers, "workers", 100,
		"how many claims, and how many PersistentVolumes, are worked on at a time")

	f.DurationVar(&o.ProvisionTimeout, "provision-timeout", 0,
		"how long one try of one claim may take (0: 60s)")

	f.BoolVar(&o.NodeLoss, "node-loss", false,
		"delete claims whose node is lost, where their class asks for it (onNodeLoss), so that "+
			"they start over elsewhere")

	f.Var(&size, "template-node-size",
		"the largest volume that a node which the cluster autoscaler would add has room for, such "+
			"as 100Gi (empty: it is told nothing)")

	f.BoolVar(&o.IgnoreCapacity, "ignore-capacity", false,
		"have the scheduler choose nodes whether their pools have room or not")

	f.StringVar(&o.HealthAddress, "health-address", ":8081",
		"where /healthz and /readyz are served")
	f.StringVar(&o.MetricsAddress, "metrics-address", ":8080", "where /metrics is served")
	if err := cmd.MarkFlagRequired("namespace"); err != nil {
		panic(err) // the flag is defined above
	}

	return cmd
}

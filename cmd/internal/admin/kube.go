package admin

import (
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/provisioner"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// cluster are the flags by which kubectl chooses a cluster and a user, under
// kubectl's names.
type cluster struct {
	kubeconfig string
	overrides  clientcmd.ConfigOverrides

	config *rest.Config
}

func (c *cluster) flags(f *pflag.FlagSet) {
	f.StringVar(&c.kubeconfig, "kubeconfig", "",
		"the kubeconfig file (default: $KUBECONFIG, or ~/.kube/config)")
	f.StringVar(&c.overrides.CurrentContext, "context", "", "the kubeconfig's context to use")
	f.StringVar(&c.overrides.Context.Cluster, "cluster", "", "the kubeconfig's cluster to use")
	f.StringVar(&c.overrides.Context.AuthInfo, "user", "", "the kubeconfig's user to use")
	f.StringVar(&c.overrides.AuthInfo.Impersonate, "as", "", "the user to act as")
	f.StringSliceVar(&c.overrides.AuthInfo.ImpersonateGroups, "as-group", nil,
		"a group to act as, with --as; may be given several times")
}

// rescuer connects to the cluster. Its client reads live.
func (c *cluster) rescuer() (*rescue.Rescuer, error) {
	kube, err := c.connect()
	if err != nil {
		return nil, err
	}
	return &rescue.Rescuer{Client: kube}, nil
}

// connect returns a client of the cluster that reads live.
func (c *cluster) connect() (client.WithWatch, error) {
	config, err := c.loader().ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}

	c.config = provisioner.Throughput(config)
	scheme, err := provisioner.NewScheme()
	if err != nil {
		return nil, err
	}

	kube, err := client.NewWithWatch(c.config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}

	return kube, nil
}

// namespace is that of the kubeconfig's context, "default" if it has none.
func (c *cluster) namespace() (string, error) {
	name, _, err := c.loader().Namespace()
	if err != nil {
		return "", fmt.Errorf("read the kubeconfig's namespace: %w", err)
	}
	return name, nil
}

func (c *cluster) loader() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &c.overrides)
}

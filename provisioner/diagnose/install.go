package diagnose

import (
	"context"
	"errors"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Parts of an Install, by which Unread says what is not known of it.
const (
	partServer     = "the API server's version"
	partKinds      = "CustomResourceDefinitions"
	partPrograms   = "DaemonSets and Deployments"
	partPods       = "Quarry's pods"
	partNodes      = "Nodes"
	partCSINodes   = "CSINodes"
	partDrivers    = "CSIDrivers"
	partClasses    = "StorageClasses"
	partPolicies   = "admission policies"
	partCapacity   = "CSIStorageCapacities"
	partPools      = "Pools"
	partNamespace  = "Quarry's namespace"
	partAgent      = "the agent's rights"
	partController = "the controller's rights"
	partOwn        = "your own rights"
)

// Install is what there is of an installation, or of what one needs. What could
// not be read is in Unread, and its field is as if nothing were there.
type Install struct {
	At     time.Time
	Server *version.Info
	// Program is the version of this program.
	Program string

	Kinds       map[string]*unstructured.Unstructured
	DaemonSets  []appsv1.DaemonSet
	Deployments []appsv1.Deployment
	Agents      []corev1.Pod
	Controllers []corev1.Pod
	Nodes       []corev1.Node
	CSINodes    []storagev1.CSINode
	Drivers     map[string]*storagev1.CSIDriver
	Classes     []storagev1.StorageClass
	Policies    []admissionv1.ValidatingAdmissionPolicy
	Bindings    []admissionv1.ValidatingAdmissionPolicyBinding
	Capacities  []storagev1.CSIStorageCapacity
	Pools       []v1alpha1.Pool
	// Namespace is the one that Quarry is in; nil if it is in none.
	Namespace *corev1.Namespace

	// AgentLacks and ControllerLacks are rights that the accounts need and do
	// not have, Own those that the person lacks who would install it.
	AgentLacks, ControllerLacks, Own []Right

	Unread map[string]error
}

// AgentAccount and ControllerAccount are the accounts as NAMESPACE/NAME; empty
// where there is no such program.
func (i *Install) AgentAccount() string {
	if len(i.DaemonSets) == 0 {
		return ""
	}
	d := &i.DaemonSets[0]
	return d.Namespace + "/" + d.Spec.Template.Spec.ServiceAccountName
}

// ControllerAccount is the account of the controller.
func (i *Install) ControllerAccount() string {
	if len(i.Deployments) == 0 {
		return ""
	}
	d := &i.Deployments[0]
	return d.Namespace + "/" + d.Spec.Template.Spec.ServiceAccountName
}

// installer reads an Install part by part.
type installer struct {
	kube client.Client
	i    *Install
}

// Examine reads what there is of an installation. Only an API server that does
// not answer at all is an error: what may not be read is in Unread.
func Examine(ctx context.Context, kube client.Client, server discovery.ServerVersionInterface,
	s Selectors, program string, now time.Time) (*Install, error) {
	r := &installer{kube: kube, i: &Install{
		At: now, Program: program, Unread: map[string]error{},
		Kinds:   map[string]*unstructured.Unstructured{},
		Drivers: map[string]*storagev1.CSIDriver{},
	}}
	var err error
	if r.i.Server, err = server.ServerVersion(); err != nil {
		if _, answered := errors.AsType[*apierrors.StatusError](err); !answered {
			return nil, fmt.Errorf("reach the API server: %w", err)
		}
		r.i.Unread[partServer] = err
	}

	r.kinds(ctx)
	r.programs(ctx, s)
	r.objects(ctx, s)
	r.accounts(ctx, s)

	return r.i, nil
}

// read lists objects, and notes if that cannot be done. That a kind does not
// exist means that there are none.
func (r *installer) read(ctx context.Context, part string, list client.ObjectList,
	options ...client.ListOption) {
	err := r.kube.List(ctx, list, options...)
	if err != nil && !meta.IsNoMatchError(err) {
		r.i.Unread[part] = err
	}
}

func (r *installer) kinds(ctx context.Context) {
	for name := range ourKinds {
		definition := &unstructured.Unstructured{}
		definition.SetGroupVersionKind(schema.GroupVersionKind{
			Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		err := r.kube.Get(ctx, client.ObjectKey{Name: name}, definition)
		switch {
		case err == nil:
			r.i.Kinds[name] = definition
		case !apierrors.IsNotFound(err):
			r.i.Unread[partKinds] = err
		}
	}
}

// programs reads Quarry's own programs, and the namespace that they are in.
func (r *installer) programs(ctx context.Context, s Selectors) {
	i := r.i
	var (
		daemons     appsv1.DaemonSetList
		deployments appsv1.DeploymentList
		agents      corev1.PodList
		controllers corev1.PodList
	)
	r.read(ctx, partPrograms, &daemons, ours(s.Namespace, s.Agent)...)
	r.read(ctx, partPrograms, &deployments, ours(s.Namespace, s.Controllers)...)
	r.read(ctx, partPods, &agents, ours(s.Namespace, s.Agent)...)
	r.read(ctx, partPods, &controllers, ours(s.Namespace, s.Controllers)...)
	i.DaemonSets, i.Deployments = daemons.Items, deployments.Items
	i.Agents, i.Controllers = agents.Items, controllers.Items

	name := s.Namespace
	if len(i.DaemonSets) > 0 {
		name = i.DaemonSets[0].Namespace
	}

	if name == "" {
		return
	}

	namespace := &corev1.Namespace{}
	err := r.kube.Get(ctx, client.ObjectKey{Name: name}, namespace)
	switch {
	case err == nil:
		i.Namespace = namespace
	case !apierrors.IsNotFound(err):
		i.Unread[partNamespace] = err
	}
}

// objects reads what others have to do with it.
func (r *installer) objects(ctx context.Context, s Selectors) {
	i := r.i
	var (
		nodes      corev1.NodeList
		csiNodes   storagev1.CSINodeList
		drivers    storagev1.CSIDriverList
		classes    storagev1.StorageClassList
		policies   admissionv1.ValidatingAdmissionPolicyList
		bindings   admissionv1.ValidatingAdmissionPolicyBindingList
		capacities storagev1.CSIStorageCapacityList
		pools      v1alpha1.PoolList
	)
	r.read(ctx, partNodes, &nodes)
	r.read(ctx, partCSINodes, &csiNodes)
	r.read(ctx, partDrivers, &drivers)
	r.read(ctx, partClasses, &classes)
	r.read(ctx, partPolicies, &policies)
	r.read(ctx, partPolicies, &bindings)
	r.read(ctx, partCapacity, &capacities, client.InNamespace(s.Namespace),
		client.MatchingLabels(provisioner.CapacityLabels()))
	r.read(ctx, partPools, &pools)

	i.Nodes, i.CSINodes, i.Classes = nodes.Items, csiNodes.Items, classes.Items
	i.Policies, i.Bindings, i.Capacities = policies.Items, bindings.Items, capacities.Items
	i.Pools = pools.Items
	for n := range drivers.Items {
		i.Drivers[drivers.Items[n].Name] = &drivers.Items[n]
	}
}

// accounts asks what Quarry's accounts may not do, or, where it is not
// installed, what the person may not do who asks.
func (r *installer) accounts(ctx context.Context, s Selectors) {
	i := r.i
	ask := func(part, account string, all []Right) []Right {
		namespace := s.Namespace
		if i.Namespace != nil {
			namespace = i.Namespace.Name
		}

		lacks, err := denied(ctx, r.kube, account, namespace, all)
		if err != nil {
			i.Unread[part] = err
		}

		return lacks
	}

	agent, controller := i.AgentAccount(), i.ControllerAccount()
	if agent != "" {
		i.AgentLacks = ask(partAgent, agent, agentRights)
	}

	if controller != "" {
		i.ControllerLacks = ask(partController, controller, controllerRights)
	}

	if agent == "" && controller == "" {
		i.Own = ask(partOwn, "", installRights)
	}
}

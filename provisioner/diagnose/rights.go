package diagnose

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Right is one thing that an account may do.
type Right struct {
	Verb, Group, Resource string
	// Namespace is empty for all namespaces; OwnNamespace stands for the one
	// that Quarry is installed in.
	Namespace string
	// Name is empty for every object.
	Name string
}

// OwnNamespace is the namespace of a Right in the one that Quarry is in.
const OwnNamespace = "*own*"

func (r Right) String() string {
	resource := r.Resource
	if r.Group != "" {
		resource += "." + r.Group
	}

	if r.Name != "" {
		resource += "/" + r.Name
	}

	text := r.Verb + " " + resource
	if r.Namespace != "" {
		text += " in namespace " + r.Namespace
	}

	return text
}

// rights are those of several verbs of one kind.
func rights(group, resource, verbs string) []Right {
	var out []Right
	for verb := range strings.FieldsSeq(verbs) {
		out = append(out, Right{Verb: verb, Group: group, Resource: resource})
	}
	return out
}

// in puts rights into a namespace.
func in(namespace string, all []Right) []Right {
	for i := range all {
		all[i].Namespace = namespace
	}
	return all
}

// named narrows rights to one object.
func named(name string, all []Right) []Right {
	for i := range all {
		all[i].Name = name
	}
	return all
}

// agentRights is what an agent cannot do without. The chart's rbac-agent.yaml
// says what for; a test compares them.
var agentRights = slices.Concat(
	rights("quarry.storage", "volumes", "get list watch"),
	rights("quarry.storage", "snapshots", "get list watch"),
	rights("quarry.storage", "volumes/status", "update patch"),
	rights("quarry.storage", "snapshots/status", "update patch"),
	rights("quarry.storage", "pools", "get list watch create update patch"),
	rights("quarry.storage", "pools/status", "update patch"),
	named("kube-system", rights("", "namespaces", "get")),
	in("kube-node-lease", rights("coordination.k8s.io", "leases", "get")),
)

// controllerRights is what the controller cannot do without. The chart's
// rbac-controller.yaml says what for; a test compares them.
var controllerRights = slices.Concat(
	rights("quarry.storage", "volumes", "get list watch create update patch delete"),
	rights("quarry.storage", "snapshots", "get list watch create update patch delete"),
	rights("quarry.storage", "pools", "get list watch delete"),
	rights("", "persistentvolumes", "get list watch create update patch delete"),
	rights("", "persistentvolumeclaims", "get list watch update patch"),
	rights("", "persistentvolumeclaims/status", "update patch"),
	rights("storage.k8s.io", "storageclasses", "get list watch"),
	rights("", "nodes", "get list watch"),
	rights("", "pods", "get list"),
	rights("", "events", "create update patch"),
	rights("events.k8s.io", "events", "create update patch"),
	rights("storage.k8s.io", "csidrivers", "get list watch"),
	named("local.quarry.storage", rights("storage.k8s.io", "csidrivers", "update patch")),
	named("csi.quarry.storage", rights("storage.k8s.io", "csidrivers", "update patch")),
	in(OwnNamespace, rights("coordination.k8s.io", "leases",
		"get list watch create update patch delete")),
	in(OwnNamespace, rights("", "pods", "get list watch")),
	in(OwnNamespace, rights("storage.k8s.io", "csistoragecapacities",
		"get list watch create update patch delete")),
)

// installRights is what somebody needs who installs the chart.
var installRights = slices.Concat(
	rights("apiextensions.k8s.io", "customresourcedefinitions", "create"),
	rights("rbac.authorization.k8s.io", "clusterroles", "create"),
	rights("rbac.authorization.k8s.io", "clusterrolebindings", "create"),
	rights("admissionregistration.k8s.io", "validatingadmissionpolicies", "create"),
	rights("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "create"),
	rights("storage.k8s.io", "csidrivers", "create"),
	rights("storage.k8s.io", "storageclasses", "create"),
	in(OwnNamespace, rights("apps", "daemonsets", "create")),
	in(OwnNamespace, rights("apps", "deployments", "create")),
)

// rightsAtOnce is how many questions are under way at a time.
const rightsAtOnce = 16

// denied asks which of some rights an account lacks, and the person who asks if
// the account is empty. The latter everybody may ask; for an account of others
// the right to create subjectaccessreviews is needed.
func denied(ctx context.Context, kube client.Client, account, namespace string,
	all []Right) ([]Right, error) {
	var (
		mu    sync.Mutex
		out   []Right
		group errgroup.Group
	)
	group.SetLimit(rightsAtOnce)
	for _, right := range all {
		if right.Namespace == OwnNamespace {
			right.Namespace = namespace
		}

		group.Go(func() error {
			allowed, err := isAllowed(ctx, kube, account, right)
			if err != nil {
				return err
			}
			if !allowed {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, right)
			}

			return nil
		})
	}

	if err := group.Wait(); err != nil {
		return nil, err
	}

	slices.SortFunc(out, func(a, b Right) int { return cmp.Compare(a.String(), b.String()) })
	return out, nil
}

func isAllowed(ctx context.Context, kube client.Client, account string, r Right) (bool, error) {
	resource, sub, _ := strings.Cut(r.Resource, "/")
	about := &authorizationv1.ResourceAttributes{
		Namespace: r.Namespace, Verb: r.Verb, Group: r.Group, Resource: resource, Subresource: sub,
		Name: r.Name,
	}
	if account == "" {
		review := &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: about},
		}
		if err := kube.Create(ctx, review); err != nil {
			return false, fmt.Errorf("ask whether you may %s: %w", r, err)
		}
		return review.Status.Allowed, nil
	}

	namespace, _, _ := strings.Cut(account, "/")
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		ResourceAttributes: about,
		User:               userOf(account),
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace,
			"system:authenticated"},
	}}
	if err := kube.Create(ctx, review); err != nil {
		return false, fmt.Errorf("ask whether %s may %s: %w", account, r, err)
	}

	return review.Status.Allowed, nil
}

// userOf is the user name of a service account NAMESPACE/NAME.
func userOf(account string) string {
	return "system:serviceaccount:" + strings.Replace(account, "/", ":", 1)
}

package chart

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	apiservercel "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

const agentAccount = "system:serviceaccount:storage:q-quarry-agent"

// compile makes of the policy what the API server makes of it, with the API
// server's own packages.
func compile(t *testing.T, policy *admissionregistrationv1.ValidatingAdmissionPolicy) validating.Validator {
	t.Helper()
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	require.NoError(t, err)
	with, mode := cel.OptionalVariableDeclarations{HasAuthorizer: true}, environment.NewExpressions

	var variables []cel.NamedExpressionAccessor
	for _, v := range policy.Spec.Variables {
		variables = append(variables, &validating.Variable{Name: v.Name, Expression: v.Expression})
	}
	compiler.CompileAndStoreVariables(variables, with, mode)
	var conditions, checks, messages []cel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	for _, v := range policy.Spec.Validations {
		checks = append(checks, &validating.ValidationCondition{Expression: v.Expression, Message: v.Message,
			Reason: v.Reason})
		var message cel.ExpressionAccessor
		if v.MessageExpression != "" {
			message = &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}
		}
		messages = append(messages, message)
	}
	matcher := matchconditions.NewMatcher(compiler.CompileCondition(conditions, with, mode), policy.Spec.FailurePolicy,
		"policy", "validate", policy.Name)
	return validating.NewValidator(compiler.CompileCondition(checks, with, mode), matcher,
		compiler.CompileCondition(nil, with, mode), compiler.CompileCondition(messages,
			cel.OptionalVariableDeclarations{}, mode), policy.Spec.FailurePolicy, nil)
}

// object is a Volume or Pool of the node, changed by the functions.
func object(kind, name, node, pool string, change ...func(*unstructured.Unstructured)) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "quarry.storage/v1alpha1", "kind": kind,
		"metadata": map[string]any{"name": name, "labels": map[string]any{"a": "b"}},
		"spec":     map[string]any{"nodeName": node, "pool": pool, "desiredState": "Present"},
	}}
	for _, f := range change {
		f(o)
	}
	return o
}

func set(value any, fields ...string) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		if err := unstructured.SetNestedField(o.Object, value, fields...); err != nil {
			panic(err)
		}
	}
}

func TestAgentWritesItsOwnNodeOnly(t *testing.T) {
	policy := only[*admissionregistrationv1.ValidatingAdmissionPolicy](t, render(t, nil))
	validator := compile(t, policy)
	volume := func(change ...func(*unstructured.Unstructured)) *unstructured.Unstructured {
		return object("Volume", "v", "node1", "default", change...)
	}
	pool := func(name, node, pool string, change ...func(*unstructured.Unstructured)) *unstructured.Unstructured {
		return object("Pool", name, node, pool, change...)
	}
	takeOver := set("another cluster", "spec", "takeOver")
	const create, update, remove = admission.Create, admission.Update, admission.Delete

	for _, c := range []struct {
		name        string
		user, node  string
		resource    string
		sub         string
		operation   admission.Operation
		object, old *unstructured.Unstructured
		denied      string // part of the message; empty: allowed
	}{
		{name: "status of its own volume", resource: "volumes", sub: "status", operation: update, old: volume(),
			object: volume(set("Ready", "status", "phase"))},
		{name: "status of another node's volume", node: "node2", resource: "volumes", sub: "status", operation: update,
			old: volume(), object: volume(set("Ready", "status", "phase")), denied: "of node node2"},
		{name: "status of another node's snapshot", node: "node2", resource: "snapshots", sub: "status",
			operation: update, old: volume(), object: volume(), denied: "of node node2"},
		{name: "take a volume over", node: "node2", resource: "volumes", operation: update, old: volume(),
			object: volume(set("node2", "spec", "nodeName")), denied: "of node node2"},
		{name: "give a volume away", resource: "volumes", operation: update, old: volume(),
			object: volume(set("node2", "spec", "nodeName")), denied: "would be of node node2"},
		{name: "desiredState", resource: "volumes", operation: update, old: volume(),
			object: volume(set("Deleted", "spec", "desiredState")), denied: "never the spec"},
		{name: "a label", resource: "volumes", operation: update, old: volume(),
			object: volume(set("c", "metadata", "labels", "a")), denied: "never labels"},
		{name: "an annotation", resource: "volumes", operation: update, old: volume(),
			object: volume(set("c", "metadata", "annotations", "a")), denied: "never labels"},
		{name: "a finalizer", resource: "volumes", operation: update, old: volume(),
			object: volume(set([]any{"a"}, "metadata", "finalizers")), denied: "never labels"},
		{name: "an owner", resource: "snapshots", operation: update, old: volume(),
			object: volume(set([]any{map[string]any{"name": "a"}}, "metadata", "ownerReferences")),
			denied: "never labels"},
		{name: "nothing changed", resource: "volumes", operation: update, old: volume(), object: volume()},
		{name: "make a volume", resource: "volumes", operation: create, object: volume(),
			denied: "neither make nor delete"},
		{name: "delete a volume", resource: "volumes", operation: remove, old: volume(),
			denied: "neither make nor delete"},
		{name: "make its pool", resource: "pools", operation: create, object: pool("node1.default",
			"node1", "default")},
		{name: "status of its pool", resource: "pools", sub: "status", operation: update, old: pool("node1.default",
			"node1", "default"), object: pool("node1.default", "node1", "default")},
		{name: "make another node's pool", resource: "pools", operation: create, object: pool("node2.default",
			"node2", "default"), denied: "would be of node node2"},
		{name: "a pool named like another node's", resource: "pools", operation: create, object: pool("node2.default",
			"node1", "default"), denied: "name has to be"},
		{name: "a pool named like another", resource: "pools", operation: create, object: pool("node1.fast",
			"node1", "default"), denied: "name has to be"},
		{name: "status of another node's pool", node: "node2", resource: "pools", sub: "status", operation: update,
			old:    pool("node1.default", "node1", "default"),
			object: pool("node1.default", "node1", "default"), denied: "of node node2"},
		{name: "take over another cluster's disk", resource: "pools", operation: update, old: pool("node1.default",
			"node1", "default"), object: pool("node1.default", "node1", "default", takeOver), denied: "may take over"},
		{name: "make a pool that takes over", resource: "pools", operation: create, object: pool("node1.default",
			"node1", "default", takeOver), denied: "may take over"},
		{name: "a pool that an administrator told to take over", resource: "pools", operation: update,
			old:    pool("node1.default", "node1", "default", takeOver),
			object: pool("node1.default", "node1", "default", takeOver, set("u", "spec", "uid"))},
		{name: "delete its pool", resource: "pools", operation: remove, old: pool("node1.default", "node1", "default")},
		{name: "delete another node's pool", node: "node2", resource: "pools", operation: remove,
			old: pool("node1.default", "node1", "default"), denied: "of node node2"},
		{name: "a token of no node", node: "-", resource: "volumes", sub: "status", operation: update, old: volume(),
			object: volume(), denied: "not made for a pod on a node"},
		{name: "a token of no node, a record of no node", node: "-", resource: "volumes", sub: "status",
			operation: update, old: volume(set("", "spec", "nodeName")),
			object: volume(set("", "spec", "nodeName")), denied: "not made for a pod on a node"},
		{name: "the controller", user: "system:serviceaccount:storage:q-quarry-controller", node: "node2",
			resource: "volumes", operation: create, object: volume()},
		{name: "an account of the same name elsewhere", user: "system:serviceaccount:other:q-quarry-agent",
			node: "node2", resource: "volumes", operation: create, object: volume()},
	} {
		t.Run(c.name, func(t *testing.T) {
			who := &user.DefaultInfo{Name: agentAccount, Extra: map[string][]string{}}
			if c.user != "" {
				who.Name = c.user
			}
			switch c.node {
			case "":
				who.Extra["authentication.kubernetes.io/node-name"] = []string{"node1"}
			case "-":
			default:
				who.Extra["authentication.kubernetes.io/node-name"] = []string{c.node}
			}
			result := validate(validator, who, c.resource, c.sub, c.operation, c.object, c.old)
			var denied []string
			for _, d := range result.Decisions {
				if d.Action != validating.ActionAdmit {
					denied = append(denied, d.Message)
				}
			}
			if c.denied == "" {
				require.Empty(t, denied)
				return
			}
			require.NotEmpty(t, denied)
			require.Contains(t, denied[0], c.denied)
		})
	}
}

func validate(v validating.Validator, who user.Info, resource, sub string, operation admission.Operation, object,
	old *unstructured.Unstructured) validating.ValidateResult {
	gvr := schema.GroupVersionResource{Group: "quarry.storage", Version: "v1alpha1", Resource: resource}
	some := object
	if some == nil {
		some = old
	}
	// A nil *Unstructured in an interface would not be nil.
	var objectOrNil, oldOrNil runtime.Object
	if object != nil {
		objectOrNil = object
	}
	if old != nil {
		oldOrNil = old
	}
	attributes := admission.NewAttributesRecord(objectOrNil, oldOrNil, some.GroupVersionKind(), "", some.GetName(), gvr,
		sub, operation, nil, false, who)
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: some.GroupVersionKind(),
		VersionedObject: admission.NewLazyObject(objectOrNil), VersionedOldObject: admission.NewLazyObject(oldOrNil)}
	return v.Validate(context.Background(), gvr, versioned, nil, nil, apiservercel.RuntimeCELCostBudget, nil)
}

// TestPolicyCoversEverythingAgentsMayWrite: each resource and subresource is to
// be listed by itself.
func TestPolicyCoversEverythingAgentsMayWrite(t *testing.T) {
	objects := render(t, nil)
	policy := only[*admissionregistrationv1.ValidatingAdmissionPolicy](t, objects)
	require.Equal(t, admissionregistrationv1.Fail, *policy.Spec.FailurePolicy)
	require.Len(t, policy.Spec.MatchConstraints.ResourceRules, 1)
	rule := policy.Spec.MatchConstraints.ResourceRules[0]
	require.Equal(t, []string{"quarry.storage"}, rule.APIGroups)
	require.Equal(t, []string{"*"}, rule.APIVersions)
	require.ElementsMatch(t, []admissionregistrationv1.OperationType{"CREATE", "UPDATE", "DELETE"}, rule.Operations)
	for _, r := range clusterRole(t, objects, "q-quarry-agent").Rules {
		if r.APIGroups[0] == "quarry.storage" {
			require.Subset(t, rule.Resources, r.Resources)
		}
	}
	require.Subset(t, rule.Resources, []string{"volumes", "volumes/status", "snapshots", "snapshots/status", "pools",
		"pools/status"})

	binding := only[*admissionregistrationv1.ValidatingAdmissionPolicyBinding](t, objects)
	require.Equal(t, policy.Name, binding.Spec.PolicyName)
	require.Equal(t, []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
		binding.Spec.ValidationActions)
	require.Nil(t, binding.Spec.MatchResources, "bound everywhere")
}

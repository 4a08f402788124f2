package diagnose

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

func (d *doctor) controller() {
	if d.unknown("controller", partPods) {
		return
	}

	c := &Cluster{At: d.i.At, Controllers: d.i.Controllers}
	if f := c.controllerFinding(); f != nil {
		r := ResultError
		if f.Severity == Warning {
			r = ResultWarning
		}

		d.say("controller", r, f.Message, f.Remedy, f.Runbook)
		return
	}

	have := c.controller()
	d.ok("controller", fmt.Sprintf("%d of %s ready", have.Ready, count(have.Total, "pod")))
}

// agents looks for an agent on each node that is to have one.
func (d *doctor) agents() {
	if d.unknown("agents", partPods) || d.i.Unread[partNodes] != nil {
		return // nodes have said it
	}
	if len(d.i.DaemonSets) == 0 {
		d.say("agents", ResultError, "there is no DaemonSet of agents",
			"helm upgrade with the chart of the installed version makes it again", "")
		return
	}

	c := &Cluster{At: d.i.At, Agents: d.i.Agents, Nodes: map[string]*corev1.Node{}}
	for i := range d.i.Nodes {
		c.Nodes[d.i.Nodes[i].Name] = &d.i.Nodes[i]
	}

	there := map[string]Node{}
	for _, n := range c.nodes() {
		there[n.Name] = n
	}

	spec := &d.i.DaemonSets[0].Spec.Template.Spec
	ready, passedBy := 0, 0
	for i := range d.i.Nodes {
		node := &d.i.Nodes[i]
		n, has := there[node.Name]
		switch {
		case has && n.Agent == AgentReady:
			ready++
		case has && n.Ready:
			pod := c.pod(n.AgentPod)
			d.say("agents", ResultError, fmt.Sprintf("the agent of node %s is %s (%s)", node.Name,
				strings.ToLower(string(n.Agent)), troubleOf(pod)),
				fmt.Sprintf("kubectl -n %s logs %s -c agent%s", pod.Namespace, pod.Name,
					previous(pod)),
				chapter("where-to-look"))
		case !has && labels.SelectorFromSet(spec.NodeSelector).Matches(labels.Set(node.Labels)):
			d.withoutAgent(node, spec.Tolerations)
		default:
			passedBy++
		}
	}

	if ready > 0 {
		d.ok("agents", fmt.Sprintf("%s ready; %s not meant to have one, or not ready",
			count(ready, "agent"), count(passedBy, "node")))
	}
}

// withoutAgent says why no agent runs on a node that the DaemonSet selects.
func (d *doctor) withoutAgent(node *corev1.Node, tolerations []corev1.Toleration) {
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]

		// The DaemonSet's own controller tolerates these.
		if strings.HasPrefix(taint.Key, "node.kubernetes.io/") || tolerates(tolerations, taint) {
			continue
		}

		d.say("agents", ResultNote,
			fmt.Sprintf("no agent on node %s, which has the taint %s", node.Name,
				taint.ToString()), "if it is to have volumes, tolerate it (agent.tolerations)",
			"docs/guides/pools.md")
		return
	}

	d.say("agents", ResultError, "no agent on node "+node.Name+", and nothing is seen that "+
		"keeps it away",
		"kubectl describe daemonset -A -l app.kubernetes.io/component=agent says what happened", "")
}

// versions looks whether all of Quarry is of one version. In a roll-out it is
// not for a while.
func (d *doctor) versions() {
	if d.i.Unread[partPods] != nil {
		return // agents have said it
	}

	const label = "app.kubernetes.io/version"
	found := map[string]int{}
	for _, pods := range [][]corev1.Pod{d.i.Agents, d.i.Controllers} {
		for i := range pods {
			if v := pods[i].Labels[label]; v != "" {
				found[v]++
			}
		}
	}

	all := slices.Sorted(maps.Keys(found))
	var texts []string
	for _, v := range all {
		texts = append(texts, fmt.Sprintf("%s in %s", v, count(found[v], "pod")))
	}

	switch {
	case len(all) == 0:
		d.say("versions", ResultNote, "Quarry's pods have no label "+label, "", "")
	case len(all) > 1:
		d.say("versions", ResultWarning, "not all of one version: "+strings.Join(texts, ", "),
			"wait for the roll-out, or see what holds it up: kubectl rollout status",
			"docs/guides/upgrading.md")
	case isRelease(d.i.Program) && d.i.Program != all[0]:
		d.say("versions", ResultNote, fmt.Sprintf("%s, and this plugin is %s",
			texts[0], d.i.Program),
			"use the plugin of the installed version", "docs/guides/kubectl-quarry.md#install")
	default:
		d.ok("versions", texts[0])
	}
}

// isRelease reports whether a version is one that can be compared: programs
// that were built by hand have none.
func isRelease(version string) bool {
	return version != "" && version != "dev" && version != "test"
}

// policy looks for the admission policy that keeps an agent to its own node.
func (d *doctor) policy() {
	account := d.i.AgentAccount()
	if account == "" || d.unknown("admission-policy", partPolicies) {
		return
	}

	const doc = "SECURITY.md"
	mend := "helm upgrade with the chart of the installed version writes it again; see " +
		"who changed it"
	user := userOf(account)
	at := slices.IndexFunc(d.i.Policies, func(p admissionv1.ValidatingAdmissionPolicy) bool {
		return concerns(&p, user)
	})
	if at < 0 {
		d.say("admission-policy", ResultError, "no ValidatingAdmissionPolicy is about "+user+
			": a stolen agent's token may write about every node's volumes", mend, doc)
		return
	}

	policy := &d.i.Policies[at]
	bound := slices.ContainsFunc(d.i.Bindings,
		func(b admissionv1.ValidatingAdmissionPolicyBinding) bool {
			return b.Spec.PolicyName == policy.Name &&
				slices.Contains(b.Spec.ValidationActions, admissionv1.Deny)
		})
	switch {
	case !bound:
		d.say("admission-policy", ResultError, "policy "+policy.Name+
			" is not bound so that it denies",
			mend, doc)
	case policy.Spec.FailurePolicy != nil && *policy.Spec.FailurePolicy != admissionv1.Fail:
		d.say("admission-policy", ResultError, "policy "+policy.Name+
			" lets pass what it cannot judge",
			mend, doc)
	case policy.Status.TypeChecking != nil &&
		len(policy.Status.TypeChecking.ExpressionWarnings) > 0:
		d.say("admission-policy", ResultWarning, "policy "+policy.Name+": "+
			policy.Status.TypeChecking.ExpressionWarnings[0].Warning, mend, doc)
	default:
		d.ok("admission-policy", "policy "+policy.Name+" keeps agents to their own nodes")
	}
}

// concerns reports whether a policy is about what a user writes of our kinds.
func concerns(p *admissionv1.ValidatingAdmissionPolicy, user string) bool {
	about := p.Spec.MatchConstraints != nil &&
		slices.ContainsFunc(p.Spec.MatchConstraints.ResourceRules,
			func(r admissionv1.NamedRuleWithOperations) bool {
				return slices.Contains(r.APIGroups, v1alpha1.GroupName)
			})
	return about && slices.ContainsFunc(p.Spec.MatchConditions,
		func(c admissionv1.MatchCondition) bool {
			return strings.Contains(c.Expression, `"`+user+`"`)
		})
}

// drivers looks at the CSIDriver objects, by which the scheduler knows whether
// to heed capacity, and whether kubelets have the driver.
func (d *doctor) drivers() {
	if d.unknown("drivers", partDrivers) {
		return
	}

	wanted := map[string]bool{v1alpha1.LocalProvisioner: true}
	for i := range d.i.Classes {
		if isOurClass(&d.i.Classes[i]) {
			wanted[d.i.Classes[i].Provisioner] = true
		}
	}

	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		driver := d.i.Drivers[name]
		switch {
		case driver == nil && name == v1alpha1.CSIDriver:
			d.say("drivers", ResultError, "there is no CSIDriver "+name+
				", and a StorageClass asks for it",
				"set csi.enabled in the chart's values, or delete the class",
				"docs/guides/classic-or-csi.md")
		case driver == nil:
			d.say("drivers", ResultError, "there is no CSIDriver "+name+
				": the scheduler heeds no capacity",
				"helm upgrade with the chart of the installed version makes it again", "")
		case driver.Spec.AttachRequired == nil || *driver.Spec.AttachRequired:
			d.say("drivers", ResultError, "CSIDriver "+name+" says that volumes are attached, "+
				"and nobody does",
				"delete the object and run helm upgrade: the field cannot be changed", "")
		case driver.Spec.StorageCapacity == nil || !*driver.Spec.StorageCapacity:
			d.say("drivers", ResultWarning, "CSIDriver "+name+" has the scheduler ignore "+
				"capacity: pods may be sent to nodes that are full", "the controller turns it on "+
				"once it published capacity of every node, unless capacity.check is false; its "+
				"log says what holds it up",
				"docs/guides/autoscaling.md")
		default:
			d.ok("drivers", "CSIDriver "+name+", and the scheduler heeds capacity")
		}
	}

	if wanted[v1alpha1.CSIDriver] && d.i.Drivers[v1alpha1.CSIDriver] != nil {
		d.registered()
	}
}

// registered looks whether the kubelet of each node with a ready agent knows
// the CSI driver.
func (d *doctor) registered() {
	if d.unknown("registration", partCSINodes) {
		return
	}

	knows := map[string]bool{}
	for i := range d.i.CSINodes {
		knows[d.i.CSINodes[i].Name] = slices.ContainsFunc(d.i.CSINodes[i].Spec.Drivers,
			func(driver storagev1.CSINodeDriver) bool { return driver.Name == v1alpha1.CSIDriver })
	}

	var without []string
	for i := range d.i.Agents {
		if pod := &d.i.Agents[i]; isPodReady(pod) && !knows[pod.Spec.NodeName] {
			without = append(without, pod.Spec.NodeName)
		}
	}

	if len(without) == 0 {
		d.ok("registration", "every kubelet with a ready agent has the CSI driver")
		return
	}

	slices.Sort(without)
	d.say("registration", ResultError, "the CSI driver is not registered with the kubelet of "+
		some(without),
		"is kubeletDir in the chart's values the kubelet's --root-dir there?",
		"docs/guides/distributions.md")
}

// classes reads the parameters of each StorageClass as the provisioner does.
func (d *doctor) classes() {
	if d.unknown("classes", partClasses) {
		return
	}

	ours := 0
	for i := range d.i.Classes {
		class := &d.i.Classes[i]
		if !isOurClass(class) {
			continue
		}

		ours++
		set, err := parameters.Parse(class.Parameters)
		if err != nil {
			d.say("classes", ResultError, fmt.Sprintf("StorageClass %s: %v", class.Name, err),
				"parameters cannot be changed: delete the class and make it again; "+
					"volumes do not mind",
				"docs/reference/parameters.md")
			continue
		}

		d.class(class, set)
	}

	if ours == 0 {
		d.say("classes", ResultWarning, "no StorageClass asks for Quarry",
			"set storageClass.create in the chart's values, or make one (examples/classes)",
			"docs/reference/parameters.md")
	}
}

// class looks at a class whose parameters can be read.
func (d *doctor) class(class *storagev1.StorageClass, set parameters.Set) {
	matching, err := d.poolsFor(set)
	switch {
	case err != nil:
		d.say("classes", ResultError, fmt.Sprintf("StorageClass %s: poolSelector: %v",
			class.Name, err),
			"delete the class and make it again", "docs/guides/placement.md")
	case d.i.Unread[partPools] == nil && len(d.i.Pools) > 0 && matching == 0:
		d.say("classes", ResultWarning, "StorageClass "+class.Name+": no pool of any node is one "+
			"that it allows", "compare its pool and poolSelector with kubectl get "+
			"pools.quarry.storage --show-labels",
			"docs/guides/placement.md")
	case class.VolumeBindingMode == nil ||
		*class.VolumeBindingMode == storagev1.VolumeBindingImmediate:
		d.say("classes", ResultNote, "StorageClass "+class.Name+" binds at once, before it is "+
			"known where the pod can run", "volumeBindingMode: WaitForFirstConsumer, unless that "+
			"is what is wanted",
			"docs/guides/placement.md")
	default:
		d.ok("classes", fmt.Sprintf("StorageClass %s: its parameters are fine, and %s will do",
			class.Name,
			count(matching, "pool")))
	}
}

// poolsFor counts the pools that a class allows.
func (d *doctor) poolsFor(set parameters.Set) (n int, err error) {
	selector := labels.Everything()
	if set.PoolSelector != nil {
		if selector, err = metav1.LabelSelectorAsSelector(set.PoolSelector); err != nil {
			return 0, err
		}
	}

	for i := range d.i.Pools {
		p := &d.i.Pools[i]
		if (set.Pool == "" || set.Pool == p.Spec.Pool) && selector.Matches(labels.Set(p.Labels)) {
			n++
		}
	}

	return n, nil
}

// fresh is how long the controller may take to publish the capacity of what is
// new.
const fresh = 2 * time.Minute

// capacity looks whether the scheduler is told of every node with a pool, for
// every class that waits for it.
func (d *doctor) capacity() {
	if d.unknown("capacity", partCapacity) || d.i.Unread[partClasses] != nil ||
		d.i.Unread[partPools] != nil {
		return
	}

	told := map[string]bool{}
	for i := range d.i.Capacities {
		c := &d.i.Capacities[i]
		told[c.Annotations[v1alpha1.AnnotationNode]+" "+c.StorageClassName] = true
	}

	nodes := map[string]bool{}
	for i := range d.i.Pools {
		if p := &d.i.Pools[i]; d.i.At.Sub(p.CreationTimestamp.Time) > fresh &&
			d.exists(p.Spec.NodeName) {
			nodes[p.Spec.NodeName] = true
		}
	}

	var missing []string
	for i := range d.i.Classes {
		class := &d.i.Classes[i]
		if !isOurClass(class) || class.VolumeBindingMode == nil ||
			*class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer ||
			d.i.At.Sub(class.CreationTimestamp.Time) < fresh {
			continue
		}

		for _, node := range slices.Sorted(maps.Keys(nodes)) {
			if !told[node+" "+class.Name] {
				missing = append(missing, fmt.Sprintf("node %s for class %s", node, class.Name))
			}
		}
	}

	if len(missing) > 0 {
		d.say("capacity", ResultError, "the scheduler is not told of the room of "+some(missing)+
			": it passes by these nodes", "see whether the controller is ready, and its log",
			"docs/guides/autoscaling.md")
		return
	}

	d.ok("capacity", count(len(d.i.Capacities), "CSIStorageCapacity object")+
		": the scheduler is told of every node with a pool")
}

// exists reports whether there is a Node object, or nobody knows.
func (d *doctor) exists(node string) bool {
	return d.i.Unread[partNodes] != nil ||
		slices.ContainsFunc(d.i.Nodes, func(n corev1.Node) bool { return n.Name == node })
}

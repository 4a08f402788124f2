package diagnose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"
)

// Least versions that Quarry works with. Tests compare them with the chart's
// and with what README.md says.
const (
	leastKubernetes = "1.32.0"
	leastKernel     = "5.14.0"
)

// few is how many names a message has before it counts the rest.
const few = 5

// some are a few names, and how many more there are.
func some(names []string) string {
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// older reports whether a version is less than another one. What cannot be read
// as a version is not.
func older(have, least string) bool {
	v, err := version.ParseGeneric(kernelNumber(have))
	return err == nil && v.LessThan(version.MustParseGeneric(least))
}

// kernelNumber is a version without what distributions put behind it: 5.14.0 of
// 5.14.0-427.el9.x86_64.
func kernelNumber(text string) string {
	text = strings.TrimPrefix(text, "v")
	end := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end >= 0 {
		text = text[:end]
	}
	return strings.Trim(text, ".")
}

func (d *doctor) server() {
	if d.unknown("api-server", partServer) {
		return
	}

	have := d.i.Server.GitVersion
	if older(have, leastKubernetes) {
		d.say("api-server", ResultError, fmt.Sprintf("Kubernetes %s is older than %s", have,
			leastKubernetes), "upgrade the cluster: agents cannot be kept to their own node before",
			"README.md")
		return
	}

	d.ok("api-server", "Kubernetes "+have)
}

// nodes looks at the systems of nodes that an agent runs on, or of all where it
// runs on none. What is on the node itself only its agent sees.
func (d *doctor) nodes() {
	if d.unknown("nodes", partNodes) {
		return
	}

	ours := map[string]bool{}
	for i := range d.i.Agents {
		ours[d.i.Agents[i].Spec.NodeName] = true
	}

	var oldKernel, oldKubelet, notReady []string
	linux := 0
	for i := range d.i.Nodes {
		node := &d.i.Nodes[i]
		system := node.Status.NodeInfo
		if system.OperatingSystem != "" && system.OperatingSystem != "linux" ||
			len(ours) > 0 && !ours[node.Name] {
			continue
		}

		linux++
		if older(system.KernelVersion, leastKernel) {
			oldKernel = append(oldKernel, node.Name+" ("+system.KernelVersion+")")
		}

		if older(system.KubeletVersion, leastKubernetes) {
			oldKubelet = append(oldKubelet, node.Name+" ("+system.KubeletVersion+")")
		}

		if !isNodeReady(node) {
			notReady = append(notReady, node.Name)
		}
	}

	switch {
	case linux == 0:
		d.say("nodes", ResultError, "no node runs Linux, or none has an agent", "", "")
		return
	case len(notReady) > 0:
		d.say("nodes", ResultWarning, "not ready: "+some(notReady), "see kubectl describe node",
			chapter("a-node-is-lost"))
	}

	if len(oldKernel) > 0 {
		d.say("nodes", ResultError, "Linux older than "+strings.TrimSuffix(leastKernel, ".0")+": "+
			some(oldKernel), "upgrade these nodes, or keep the agents away (agent.nodeSelector)",
			"docs/enforcement.md")
	}

	if len(oldKubelet) > 0 {
		d.say("nodes", ResultError, "kubelet older than "+leastKubernetes+": "+some(oldKubelet),
			"upgrade these nodes", "README.md")
	}

	if len(oldKernel)+len(oldKubelet)+len(notReady) == 0 {
		d.ok("nodes", count(linux, "Linux node")+", ready, with kernel and kubelet new enough")
	}
}

// kinds looks at the CustomResourceDefinitions. Helm never upgrades them.
func (d *doctor) kinds() {
	if d.unknown("kinds", partKinds) {
		return
	}

	apply := "kubectl apply --server-side --force-conflicts -f charts/quarry/crds"
	well := true
	for _, name := range slices.Sorted(maps.Keys(ourKinds)) {
		s := stateOf(d.i.Kinds[name], ourKinds[name])
		say := func(r Result, message, remedy string) {
			well = well && r == ResultNote
			d.say("kinds", r, name+" "+message, remedy, "docs/guides/upgrading.md")
		}
		switch {
		case !s.exists:
			say(ResultError, "does not exist", apply)
		case !s.established:
			say(ResultError, "is not established: the API server does not accept it",
				"kubectl describe crd "+name)
		case !s.served:
			say(ResultError, "does not serve version v1alpha1", apply)
		case len(s.missing) > 0:
			say(ResultWarning, "is older than this program: it lacks "+some(s.missing)+
				", which the API server drops", apply+" (Helm does not upgrade them)")
		case len(s.more) > 0:
			say(ResultNote, "is newer than this program: it has "+some(s.more)+" more",
				"use the plugin of the installed version")
		}
	}

	if well {
		d.ok("kinds", count(len(ourKinds), "CustomResourceDefinition")+
			", established and of this version")
	}
}

// leftovers says what is there of an installation that is gone.
func (d *doctor) leftovers() {
	if d.unknown("kinds", partKinds) {
		return
	}
	if len(d.i.Kinds) == 0 {
		d.ok("kinds", "no CustomResourceDefinition of Quarry yet; the chart brings them")
		return
	}

	d.say("kinds", ResultNote, "CustomResourceDefinitions of Quarry are there already: "+
		some(slices.Sorted(maps.Keys(d.i.Kinds))), "Helm leaves them as they are: apply those of "+
		"the version to be installed first (kubectl apply --server-side --force-conflicts -f "+
		"charts/quarry/crds). Volumes on disk are found again", "docs/guides/upgrading.md")
}

// podSecurity looks whether agents may be privileged in their namespace.
func (d *doctor) podSecurity() {
	if d.unknown("pod-security", partNamespace) || d.i.Namespace == nil {
		return
	}

	const label = "pod-security.kubernetes.io/enforce"
	name, level := d.i.Namespace.Name, d.i.Namespace.Labels[label]
	if level != "" && level != "privileged" {
		d.say("pod-security", ResultError, fmt.Sprintf("namespace %s enforces %s: the agents, "+
			"which are privileged, are not let in", name,
			level), fmt.Sprintf("kubectl label namespace %s --overwrite %s=privileged",
			name, label), "")
		return
	}

	d.ok("pod-security", "namespace "+name+" lets privileged pods in, unless the cluster's "+
		"default does not")
}

func (d *doctor) ownRights() {
	if d.unknown("install-rights", partOwn) {
		return
	}

	if len(d.i.Own) > 0 {
		var names []string
		for _, r := range d.i.Own {
			names = append(names, r.String())
		}

		d.say("install-rights", ResultError, "you may not "+some(names),
			"have somebody install it who may", "")
		return
	}

	d.ok("install-rights", "you may install it")
}

func (d *doctor) accountRights(name, part, account string, lacks []Right) {
	if account == "" || d.unknown(name, part) {
		return
	}
	if len(lacks) == 0 {
		d.ok(name, account+" has the rights that it needs")
		return
	}

	var names []string
	for _, r := range lacks {
		names = append(names, r.String())
	}

	d.say(name, ResultError, fmt.Sprintf("%s may not %s", account, some(names)),
		"helm upgrade with the chart of the installed version writes its roles again; see "+
			"who changed them", "")
}

// tolerates reports whether a pod's tolerations let it onto a node that has a
// taint which keeps pods away.
func tolerates(tolerations []corev1.Toleration, taint *corev1.Taint) bool {
	if taint.Effect == corev1.TaintEffectPreferNoSchedule {
		return true
	}
	return slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool {
		return (t.Effect == "" || t.Effect == taint.Effect) &&
			(t.Key == "" && t.Operator == corev1.TolerationOpExists || t.Key == taint.Key &&
				(t.Operator == corev1.TolerationOpExists || t.Value == taint.Value))
	})
}

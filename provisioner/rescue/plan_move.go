package rescue

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

func metaNamed(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

// wrongHost reports whether a local PersistentVolume asks for another hostname
// label than its node has, so that no pod could be scheduled to it.
func (p *planner) wrongHost(pv *corev1.PersistentVolume, node string) bool {
	n := p.Nodes[node]
	if pv.Spec.Local == nil || n == nil || n.Labels[corev1.LabelHostname] == "" {
		return false
	}
	hosts := affinityHosts(pv)
	return len(hosts) > 0 && !slices.Contains(hosts, n.Labels[corev1.LabelHostname])
}

// affinityHosts are the hostname labels that a PersistentVolume's affinity
// allows.
func affinityHosts(pv *corev1.PersistentVolume) []string {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return nil
	}

	var out []string
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn {
				out = append(out, e.Values...)
			}
		}
	}

	return out
}

// moved reports whether a volume's objects say another node than its disk is
// on, or are being replaced for that already.
func (p *planner) moved(at place, record *v1alpha1.Volume, pv *corev1.PersistentVolume) bool {
	if record != nil && record.Spec.NodeName != at.disk.Node {
		return true
	}
	if pv == nil {
		return false
	}

	_, node, ours := behind(pv)
	return ours &&
		(node != at.disk.Node || p.wrongHost(pv, at.disk.Node) ||
			pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != "" ||
			stalePath(at, record, pv) != "")
}

// stalePath is where a volume is if that is not where its PersistentVolume
// says: the pool's path was changed.
func stalePath(at place, record *v1alpha1.Volume, pv *corev1.PersistentVolume) string {
	v := at.found.Volume
	if record != nil && record.Status.Path != "" {
		v = record // by the agent that will be asked to keep it
	}
	if pv == nil || provisioner.StalePath(v, pv) == "" {
		return ""
	}
	return v.Status.Path
}

// move plans for a volume whose disk is on another node than its Volume or its
// PersistentVolume says. Both are fixed to a node, so both are replaced under
// the same names.
func (p *planner) move(at place, record *v1alpha1.Volume, pv *corev1.PersistentVolume) {
	v := at.found.Volume
	object := "volume/" + v.Name
	was := ""
	if record != nil {
		was = record.Spec.NodeName
	}
	if pv != nil {
		if _, node, ours := behind(pv); ours && (was == "" || was == at.disk.Node) {
			was = node
		}
	}

	var pods []string
	// Another claim may have the name by now, with its pods.
	released := pv != nil && pv.Status.Phase == corev1.VolumeReleased
	if key := p.claimOf(v, record, pv); key.Name != "" && !released {
		for _, pod := range p.Pods[key] {
			pods = append(pods, fmt.Sprintf("%s/%s on %s", key.Namespace, pod.Name, pod.Node))
		}
	}

	slices.Sort(pods)
	old := p.Nodes[was]
	why := p.whyMoved(was, at, record, pv)
	switch {
	case p.Nodes[at.disk.Node] == nil:
		p.add(Refused, object, at, "%s, and there is no Node of that name", why)
	case len(pods) > 0:
		p.add(
			Refused,
			object,
			at,
			"%s, and pods still hold it: %s; delete them, and run this again",
			why,
			strings.Join(pods, ", "),
		)
	case was != at.disk.Node && old != nil && isNodeReady(old) && !p.readOK[was]:
		p.add(Refused, object, at,
			"its disk seems to have moved from node %s to %s, but node %s is ready and its disks "+
				"could not all be read: it may still have it", was, at.disk.Node, was)
	default:
		s := p.add(Move, object, at, "%s", why)
		s.Sees = "nothing of the data changes; the PersistentVolume is replaced by one of the " +
			"same name, so its claim is Lost for some seconds and then Bound again, and its pods " +
			"run on node " + at.disk.Node
		if was != at.disk.Node && old != nil && !isNodeReady(old) {
			s.Sees += "; node " + was + " is not ready: make sure that it is off, or has not the " +
				"disk, before you go on"
		}
	}
}

// whyMoved says what of a volume's objects is not true any more.
func (p *planner) whyMoved(
	was string,
	at place,
	record *v1alpha1.Volume,
	pv *corev1.PersistentVolume,
) string {
	switch path := stalePath(at, record, pv); {
	case was != at.disk.Node:
		return fmt.Sprintf("its disk moved from node %s to %s", was, at.disk.Node)
	case path != "":
		return fmt.Sprintf(
			"its pool's path was changed: it is at %s, and its PersistentVolume says %s",
			path,
			pv.Spec.Local.Path,
		)
	case p.wrongHost(pv, at.disk.Node):
		return fmt.Sprintf(
			"node %s has another label %s now than its PersistentVolume asks for",
			was,
			corev1.LabelHostname,
		)
	}
	return "the replacement of its PersistentVolume was begun, and not finished"
}

// claimOf is the claim that uses a volume: the cluster knows better than the
// disk.
func (p *planner) claimOf(
	v, record *v1alpha1.Volume,
	pv *corev1.PersistentVolume,
) client.ObjectKey {
	if pv != nil && pv.Spec.ClaimRef != nil {
		return client.ObjectKey{
			Namespace: pv.Spec.ClaimRef.Namespace,
			Name:      pv.Spec.ClaimRef.Name,
		}
	}
	for _, v := range []*v1alpha1.Volume{record, v} {
		if v != nil && v.Spec.Claim != nil {
			return client.ObjectKey{
				Namespace: v.Spec.Claim.Namespace,
				Name:      v.Spec.Claim.Name,
			}
		}
	}
	return client.ObjectKey{}
}

func isNodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

package diagnose

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Volume is a volume with what leads to it. Its fields are part of what the
// commands print as JSON.
type Volume struct {
	Name string `json:"name"`
	Node string `json:"node"`
	Pool string `json:"pool,omitempty"`
	// Namespace and Claim are those of the claim that it was made for.
	Namespace        string `json:"namespace,omitempty"`
	Claim            string `json:"claim,omitempty"`
	StorageClass     string `json:"storageClass,omitempty"`
	PersistentVolume string `json:"persistentVolume,omitempty"`
	// Pods are the names of the pods that use the claim; nil where nobody
	// looked.
	Pods []string `json:"pods,omitempty"`

	Backend    v1alpha1.Backend `json:"backend,omitempty"`
	FSType     string           `json:"fsType,omitempty"`
	VolumeMode string           `json:"volumeMode,omitempty"`
	// Path is where it is on its node.
	Path string `json:"path,omitempty"`

	// SizeBytes is the size in force, WantedBytes the one that was asked for.
	SizeBytes   int64 `json:"sizeBytes"`
	WantedBytes int64 `json:"wantedBytes"`
	// Usage is nil where kubelet does not know it: no pod has the volume, or
	// nobody asked.
	Usage *Usage `json:"usage,omitempty"`

	// State is Ready or one word for what else there is, and Healthy false if
	// that calls for somebody.
	State   string      `json:"state"`
	Healthy bool        `json:"healthy"`
	Message string      `json:"message,omitempty"`
	Wanted  string      `json:"wanted"`
	Created metav1.Time `json:"created"`
}

// Usage is how full a volume is, as kubelet measured it.
type Usage struct {
	UsedBytes     int64       `json:"usedBytes"`
	CapacityBytes int64       `json:"capacityBytes"`
	UsedInodes    int64       `json:"usedInodes"`
	Inodes        int64       `json:"inodes"`
	At            metav1.Time `json:"at"`
}

// Links finds what leads to volumes: PersistentVolumes, and the pods that use
// the claims.
type Links struct {
	pvs  map[string]*corev1.PersistentVolume
	pods map[string][]string
}

// NewLinks looks through PersistentVolumes and pods. Either may be nil.
func NewLinks(pvs []corev1.PersistentVolume, pods []corev1.Pod) Links {
	l := Links{pvs: map[string]*corev1.PersistentVolume{}, pods: map[string][]string{}}
	for i := range pvs {
		if volume, _, ours := provisioner.VolumeOf(&pvs[i]); ours {
			l.pvs[volume] = &pvs[i]
		}
	}
	for i := range pods {
		for _, claim := range claimsOf(&pods[i]) {
			key := pods[i].Namespace + "/" + claim
			l.pods[key] = append(l.pods[key], pods[i].Name)
		}
	}
	return l
}

// claimsOf are the names of the claims that a pod uses, unless it has ended.
func claimsOf(pod *corev1.Pod) []string {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	var out []string
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, pod.Name+"-"+v.Name)
		}
	}
	return out
}

// VolumeOf tells of one Volume object.
func VolumeOf(v *v1alpha1.Volume, links Links, now time.Time) Volume {
	out := Volume{
		Name: v.Name, Node: v.Spec.NodeName, Pool: cmp.Or(v.Status.Pool, v.Spec.Pool),
		StorageClass: v.Spec.StorageClassName,
		Backend:      cmp.Or(v.Status.Backend, v.Spec.Backend),
		FSType:       v.Status.FSType, VolumeMode: string(v.Spec.VolumeMode), Path: v.Status.Path,
		SizeBytes: bytesOf(v.Status.Capacity), WantedBytes: v.Spec.Capacity.Value(),
		Wanted: string(v.Spec.DesiredState), Created: v.CreationTimestamp,
		State: "Ready", Healthy: true,
	}
	if out.SizeBytes == 0 {
		out.SizeBytes = out.WantedBytes
	}
	if ref := v.Spec.Claim; ref != nil {
		out.Namespace, out.Claim = ref.Namespace, ref.Name
		out.Pods = links.pods[ref.Namespace+"/"+ref.Name]
	}

	pv := links.pvs[v.Name]
	if pv != nil {
		out.PersistentVolume = pv.Name
	}
	if f := volumeFinding(v, pv, now); f != nil {
		out.State, out.Message, out.Healthy = f.Reason, f.Message, f.Severity == Note
	} else if s := quietState(v); s != "" {
		out.State = s
	}
	return out
}

// quietState is the word for a volume that is not Ready and with which nothing
// is wrong.
func quietState(v *v1alpha1.Volume) string {
	switch {
	case v.Spec.DesiredState == v1alpha1.DesiredTrashed &&
		v.Status.Phase == v1alpha1.VolumeTrashed:
		return string(v1alpha1.VolumeTrashed)
	case v.Spec.DesiredState != v1alpha1.DesiredPresent:
		return ReasonDeleting
	case !isReady(v):
		ready := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionReady)
		if ready != nil && ready.Reason != "" {
			return ready.Reason
		}
		return string(cmp.Or(v.Status.Phase, v1alpha1.VolumePending))
	}
	return ""
}

// holdsData reports whether there is a volume on disk, of which somebody may
// have data: it was ready once, and its deletion is not confirmed.
func holdsData(v *v1alpha1.Volume) bool {
	return provisioner.WasReady(v) || v.Status.Phase == v1alpha1.VolumeTrashed
}

func isReady(v *v1alpha1.Volume) bool {
	return meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.ConditionReady)
}

// busy is how long what passes by itself may take before somebody is called: a
// pod that ends, a growth.
const busy = time.Minute

// volumeFinding is the one thing to be said of a volume, the worst first; nil if
// there is nothing. What is wrong with an attempt that was never ready is said
// of the claim that waits for it. pv leads to the volume, and may be nil.
func volumeFinding(v *v1alpha1.Volume, pv *corev1.PersistentVolume, now time.Time) *Finding {
	f := &Finding{Kind: KindVolume, Name: v.Name, Node: v.Spec.NodeName}
	if ref := v.Spec.Claim; ref != nil {
		f.Claim = ref.Namespace + "/" + ref.Name
	}
	say := func(severity Severity, reason, message string, r remedy, since *metav1.Time) *Finding {
		f.Severity, f.Reason, f.Message, f.Since = severity, reason, message, since
		f.Remedy, f.Runbook = r.do, r.runbook
		return f
	}
	condition := func(kind string) *metav1.Condition {
		return meta.FindStatusCondition(v.Status.Conditions, kind)
	}

	if v.Spec.DesiredState != v1alpha1.DesiredPresent {
		used := condition(v1alpha1.ConditionInUse)
		if used == nil || used.Status != metav1.ConditionTrue ||
			used.Reason != v1alpha1.ReasonNotEmpty && now.Sub(used.LastTransitionTime.Time) < busy {
			return nil
		}
		return say(Warning, used.Reason, "it is to be deleted: "+used.Message,
			known(ofDeletions, used.Reason, remedy{"the deletion goes on once nothing uses it",
				chapter("held-by-a-device-or-a-mount")}), &used.LastTransitionTime)
	}
	if !provisioner.WasReady(v) {
		return nil
	}

	ready := condition(v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		return say(Warning, ReasonNotWatched, "its agent has not said anything of it yet",
			remedy{"the agent's log says what it waits for", chapter("where-to-look")}, nil)
	case ready.Status != metav1.ConditionTrue:
		return say(Critical, ready.Reason, ready.Message, known(ofVolumes, ready.Reason,
			remedy{"kubectl quarry describe volume " + v.Name, chapter("where-to-look")}),
			&ready.LastTransitionTime)
	}

	if pv != nil {
		if why := provisioner.StalePath(v, pv); why != "" {
			return say(Critical, ReasonPathChanged, why,
				remedy{"set the pool's path back, or end its pods and run kubectl quarry recover",
					chapter("a-pools-path-was-changed")}, nil)
		}
	}
	if c := condition(v1alpha1.ConditionEnforced); c != nil && c.Status == metav1.ConditionFalse {
		return say(Warning, c.Reason, c.Message, known(ofLimits, c.Reason,
			remedy{"kubectl quarry describe volume " + v.Name, chapter("a-size-is-not-enforced")}),
			&c.LastTransitionTime)
	}
	if c := condition(v1alpha1.ConditionResized); c != nil && c.Status == metav1.ConditionFalse {
		if c.Reason == v1alpha1.ReasonResizing && now.Sub(c.LastTransitionTime.Time) < busy {
			return say(Note, c.Reason, c.Message, remedy{}, &c.LastTransitionTime)
		}
		return say(Warning, c.Reason, c.Message, remedy{"make room in its pool (kubectl quarry " +
			"pools), or lower the claim's request to what it has",
			chapter("a-growth-does-not-end")}, &c.LastTransitionTime)
	}
	if v.Labels[v1alpha1.LabelOrphaned] == "true" {
		return say(Note, ReasonOrphaned, "no PersistentVolume leads to it; it is kept until a person "+
			"decides", remedy{"kubectl quarry orphans list; then orphans restore or orphans delete",
			"docs/guides/kubectl-quarry.md#orphans"}, nil)
	}
	return nil
}

// volumeFindings says what is wrong with volumes and the PersistentVolumes that
// lead to them. A volume whose node nobody looks after is left out: what is
// known of it is of before, and the node is what is wrong.
func (c *Cluster) volumeFindings(nodes []Node, links Links) []Finding {
	var out []Finding
	there, watched := map[string]bool{}, watchedNodes(nodes)
	for i := range c.Volumes {
		v := &c.Volumes[i]
		there[v.Name] = true
		if !watched[v.Spec.NodeName] {
			continue
		}
		if f := volumeFinding(v, links.pvs[v.Name], c.At); f != nil {
			out = append(out, *f)
		}
	}

	for i := range c.PVs {
		pv := &c.PVs[i]
		volume, node, ours := provisioner.VolumeOf(pv)
		if !ours || there[volume] || pv.DeletionTimestamp != nil ||
			c.since(pv.CreationTimestamp.Time) < busy {
			continue
		}
		out = append(out, Finding{
			Severity: Warning, Kind: KindPV, Name: pv.Name, Node: node, Reason: ReasonObjectMissing,
			Message: "its Volume object " + volume + " does not exist; the controller writes it again " +
				"if it can",
			Remedy:  "if this stays, kubectl describe pv " + pv.Name + " says why",
			Runbook: chapter("a-volumes-directory-or-record-was-damaged"),
		})
	}
	return out
}

// Counts is how many volumes there are.
type Counts struct {
	Total    int `json:"total"`
	Ready    int `json:"ready"`
	Trashed  int `json:"trashed"`
	Orphaned int `json:"orphaned"`
	// Other are those that are being made or deleted, or cannot be used.
	Other int `json:"other"`
}

func (c *Cluster) counts() (n Counts) {
	for i := range c.Volumes {
		v := &c.Volumes[i]
		n.Total++
		switch {
		case v.Spec.DesiredState == v1alpha1.DesiredTrashed &&
			v.Status.Phase == v1alpha1.VolumeTrashed:
			n.Trashed++
		case v.Spec.DesiredState == v1alpha1.DesiredPresent && isReady(v):
			n.Ready++
			if v.Labels[v1alpha1.LabelOrphaned] == "true" {
				n.Orphaned++
			}
		default:
			n.Other++
		}
	}
	return n
}

// SortVolumes orders volumes by one of VolumeSortKeys: names as such, sizes and what is
// used with the largest first, age with the oldest first, state with what is
// wrong first. What has no value comes last, and names decide between equals.
func SortVolumes(all []Volume, by string) {
	used := func(v *Volume) float64 {
		if v.Usage == nil || v.Usage.CapacityBytes <= 0 {
			return -1
		}
		return float64(v.Usage.UsedBytes) / float64(v.Usage.CapacityBytes)
	}
	compare := map[string]func(a, b *Volume) int{
		"name": func(a, b *Volume) int { return 0 },
		"node": func(a, b *Volume) int {
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Pool, b.Pool))
		},
		"claim": func(a, b *Volume) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Claim, b.Claim))
		},
		"size": func(a, b *Volume) int { return cmp.Compare(b.SizeBytes, a.SizeBytes) },
		"used": func(a, b *Volume) int { return cmp.Compare(used(b), used(a)) },
		"age":  func(a, b *Volume) int { return a.Created.Compare(b.Created.Time) },
		"state": func(a, b *Volume) int {
			if a.Healthy != b.Healthy {
				if a.Healthy {
					return 1
				}
				return -1
			}
			return cmp.Compare(a.State, b.State)
		},
	}[by]
	slices.SortFunc(all, func(a, b Volume) int {
		return cmp.Or(compare(&a, &b), cmp.Compare(a.Name, b.Name))
	})
}

// VolumeSortKeys are what SortVolumes takes.
var VolumeSortKeys = []string{"name", "node", "claim", "size", "used", "age", "state"}

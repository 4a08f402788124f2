package diagnose

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// now is when the clusters of these tests are looked at, and before an hour
// earlier.
var (
	now    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	before = metav1.NewTime(now.Add(-time.Hour))
)

// healthy is a cluster with nothing wrong: nodes a and b with an agent, a pool
// and a volume each, and a controller.
func healthy() *Cluster {
	c := &Cluster{
		At:    now,
		Nodes: map[string]*corev1.Node{},
		Classes: map[string]*storagev1.StorageClass{
			"quarry": class("quarry", v1alpha1.LocalProvisioner, storagev1.VolumeBindingWaitForFirstConsumer),
			"now":    class("now", v1alpha1.CSIDriver, storagev1.VolumeBindingImmediate),
			"other":  class("other", "example.com/other", storagev1.VolumeBindingImmediate),
		},
		Controllers: []corev1.Pod{pod("controller-1", "a"), pod("controller-2", "b")},
	}
	for _, node := range []string{"a", "b"} {
		c.Nodes[node] = &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: node},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: before,
			}}},
		}
		c.Agents = append(c.Agents, pod("agent-"+node, node))
		c.Pools = append(c.Pools, pool(node))
		c.Volumes = append(c.Volumes, volume("pvc-"+node+"-1", node))
		c.PVs = append(c.PVs, persistent("pvc-"+node, "pvc-"+node+"-1", node))
		c.Claims = append(c.Claims, claim("data-"+node, "quarry", corev1.ClaimBound))
	}
	return c
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name},
		Provisioner: provisioner, VolumeBindingMode: &mode}
}

func pod(name, node string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "quarry-system", CreationTimestamp: before},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Image: "quarry:1"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionTrue,
		}}},
	}
}

func pool(node string) v1alpha1.Pool {
	q := func(text string) *resource.Quantity { return new(resource.MustParse(text)) }
	return v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: node + ".default", CreationTimestamp: before},
		Spec:       v1alpha1.PoolSpec{NodeName: node, Pool: "default", UID: "disk-" + node},
		Status: v1alpha1.PoolStatus{
			Path: "/volumes", Filesystem: "xfs", FilesystemID: "fs", Capacity: q("100Gi"),
			Promised: q("40Gi"), Available: q("60Gi"), MaximumVolumeSize: q("60Gi"), Volumes: 1,
			Conditions: []metav1.Condition{condition(v1alpha1.ConditionReady, true, "Ready", "")},
		},
	}
}

func condition(kind string, truth bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason,
		Message: message, LastTransitionTime: before}
	if truth {
		c.Status = metav1.ConditionTrue
	}
	if message == "" {
		c.Message = "so it is"
	}
	return c
}

func volume(name, node string) v1alpha1.Volume {
	return v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: before,
			Labels: map[string]string{v1alpha1.LabelPVName: strings.TrimSuffix(name, "-1")}},
		Spec: v1alpha1.VolumeSpec{
			NodeName: node, DesiredState: v1alpha1.DesiredPresent, Capacity: resource.MustParse("1Gi"),
			Provisioner: v1alpha1.LocalProvisioner, StorageClassName: "quarry",
			Claim: &v1alpha1.ClaimReference{Namespace: "shop", Name: "data-" + node, UID: types.UID("data-" + node)},
		},
		Status: v1alpha1.VolumeStatus{
			Phase: v1alpha1.VolumeReady, Pool: "default", Path: "/volumes/" + name + "/data",
			Conditions: []metav1.Condition{condition(v1alpha1.ConditionReady, true, "Ready", "")},
		},
	}
}

func persistent(name, id, node string) corev1.PersistentVolume {
	return corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: before, Annotations: map[string]string{
			"pv.kubernetes.io/provisioned-by": v1alpha1.LocalProvisioner,
			v1alpha1.AnnotationVolume:         id, v1alpha1.AnnotationNode: node,
		}},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			Local: &corev1.LocalVolumeSource{Path: "/volumes/" + id + "/data"},
		}},
	}
}

func claim(name, class string, phase corev1.PersistentVolumeClaimPhase) corev1.PersistentVolumeClaim {
	c := corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID(name),
			CreationTimestamp: before, Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi")}}},
		Status: corev1.PersistentVolumeClaimStatus{Phase: phase},
	}
	if phase != corev1.ClaimPending {
		c.Spec.VolumeName = "pvc-" + name
	}
	return c
}

func event(about types.UID, kind, reason, message string, ago time.Duration) corev1.Event {
	return corev1.Event{InvolvedObject: corev1.ObjectReference{UID: about}, Type: kind, Reason: reason,
		Message: message, LastTimestamp: metav1.NewTime(now.Add(-ago))}
}

// waiter adds a claim that waits, with a pod that uses it.
func waiter(c *Cluster, class string, age time.Duration) *corev1.PersistentVolumeClaim {
	p := claim("new", class, corev1.ClaimPending)
	p.CreationTimestamp = metav1.NewTime(now.Add(-age))
	c.Claims = append(c.Claims, p)
	user := pod("web", "")
	user.Namespace, user.UID = "shop", "web"
	user.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "new"}}}}
	c.Pods = append(c.Pods, user)
	return &c.Claims[len(c.Claims)-1]
}

func set(v *v1alpha1.Volume, kind string, truth bool, reason string) {
	c := condition(kind, truth, reason, "so it is")
	meta.SetStatusCondition(&v.Status.Conditions, c)
}

// TestStatus takes something away from a healthy cluster, and looks at what is
// said of it.
func TestStatus(t *testing.T) {
	const hour, moment = time.Hour, 10 * time.Second
	for _, test := range []struct {
		name   string
		change func(c *Cluster)
		want   []string // severity kind object reason
	}{
		{"nothing is wrong", func(*Cluster) {}, nil},

		{"no controller is ready", func(c *Cluster) {
			for i := range c.Controllers {
				c.Controllers[i].Status.Conditions = nil
			}
		}, []string{"critical Deployment quarry-controller NoController"}},
		{"one controller is enough", func(c *Cluster) { c.Controllers[0].Status.Conditions = nil }, nil},
		{"a controller starts", func(c *Cluster) {
			c.Controllers = c.Controllers[:1]
			c.Controllers[0].Status.Conditions = nil
			c.Controllers[0].CreationTimestamp = metav1.NewTime(now.Add(-moment))
		}, []string{"warning Deployment quarry-controller NoController"}},
		{"there is no controller", func(c *Cluster) { c.Controllers = nil },
			[]string{"critical Deployment quarry-controller NoController"}},

		{"a node is not ready, which is all that is said of it", func(c *Cluster) {
			c.Nodes["a"].Status.Conditions[0].Status = corev1.ConditionUnknown
			c.Pools[0].Status.Conditions[0] = condition("Ready", false, "Missing", "")
			set(&c.Volumes[0], "Ready", false, "PoolOffline")
		}, []string{"critical Node a NodeNotReady"}},
		{"a node is gone with data", func(c *Cluster) {
			delete(c.Nodes, "a")
			c.Agents = c.Agents[1:]
		}, []string{"critical Node a NodeGone"}},
		{"a node is gone without data", func(c *Cluster) {
			delete(c.Nodes, "a")
			c.Agents, c.Volumes, c.PVs = c.Agents[1:], c.Volumes[1:], c.PVs[1:]
		}, []string{"note Node a NodeGone"}},
		{"an agent is missing", func(c *Cluster) { c.Agents = c.Agents[1:] },
			[]string{"critical Node a NoAgent"}},
		{"an agent crashes", func(c *Cluster) {
			c.Agents[0].Status.Conditions = nil
			c.Agents[0].Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
			c.Agents[0].CreationTimestamp = metav1.NewTime(now)
		}, []string{"critical Node a AgentNotReady"}},
		{"an agent starts", func(c *Cluster) {
			c.Agents[0].Status.Conditions = nil
			c.Agents[0].CreationTimestamp = metav1.NewTime(now.Add(-moment))
		}, []string{"note Node a InProgress"}},
		{"an agent is replaced", func(c *Cluster) {
			old := pod("agent-old", "a")
			old.Status.Conditions = nil
			c.Agents = append(c.Agents, old)
		}, nil},
		{"an agent has no pool", func(c *Cluster) {
			c.Pools, c.Volumes, c.PVs = c.Pools[1:], c.Volumes[1:], c.PVs[1:]
		}, []string{"warning Node a NoPool"}},

		{"a pool is offline, with its volume", func(c *Cluster) {
			c.Pools[0].Status.Conditions[0] = condition("Ready", false, "Missing", "")
			set(&c.Volumes[0], "Ready", false, "PoolOffline")
			c.Volumes[0].Status.Phase = v1alpha1.VolumeUnavailable
		}, []string{"critical Pool a.default Missing", "critical Volume pvc-a-1 PoolOffline"}},
		{"a pool that nobody configures any more is empty", func(c *Cluster) {
			c.Pools[0].Status.Conditions[0] = condition("Ready", false, "NotConfigured", "")
			c.Pools[0].Status.Volumes = 0
		}, []string{"warning Pool a.default NotConfigured"}},
		{"a reason of a newer version", func(c *Cluster) {
			c.Pools[0].Status.Conditions[0] = condition("Ready", false, "Haunted", "")
		}, []string{"critical Pool a.default Haunted"}},
		{"a pool has a tenth of its room, which is enough", func(c *Cluster) {
			c.Pools[0].Status.Available = new(resource.MustParse("10Gi"))
		}, nil},
		{"a pool has less", func(c *Cluster) {
			c.Pools[0].Status.Available = new(resource.MustParse("9Gi"))
		}, []string{"warning Pool a.default NearlyFull"}},
		{"a pool has no room at all", func(c *Cluster) {
			c.Pools[0].Status.Available, c.Pools[0].Status.Capacity = nil, nil
		}, []string{"warning Pool a.default NearlyFull"}},
		{"a pool was never reported", func(c *Cluster) { c.Pools[0].Status.Conditions = nil },
			[]string{"warning Pool a.default NotWatched"}},
		{"a disk was copied, and has orphans", func(c *Cluster) {
			c.Pools[0].Status.Conditions = append(c.Pools[0].Status.Conditions,
				condition("SharedIdentity", true, "Twin", ""), condition("Orphans", true, "Orphans", ""))
		}, []string{"critical Pool a.default SharedIdentity", "warning Pool a.default Orphans"}},

		{"a volume is read-only", func(c *Cluster) { set(&c.Volumes[0], "Ready", false, "ReadOnly") },
			[]string{"critical Volume pvc-a-1 ReadOnly"}},
		{"a volume is lost", func(c *Cluster) {
			set(&c.Volumes[0], "Ready", false, "Lost")
			c.Volumes[0].Status.Phase = v1alpha1.VolumeLost
		}, []string{"critical Volume pvc-a-1 Lost"}},
		{"a size is not in force", func(c *Cluster) { set(&c.Volumes[0], "Enforced", false, "QuotaLost") },
			[]string{"warning Volume pvc-a-1 QuotaLost"}},
		{"a volume cannot grow", func(c *Cluster) {
			set(&c.Volumes[0], "Resized", false, "ResizeInfeasible")
		}, []string{"warning Volume pvc-a-1 ResizeInfeasible"}},
		{"a volume has not grown for an hour", func(c *Cluster) {
			set(&c.Volumes[0], "Resized", false, "Resizing")
		}, []string{"warning Volume pvc-a-1 Resizing"}},
		{"a volume begins to grow", func(c *Cluster) {
			set(&c.Volumes[0], "Resized", false, "Resizing")
			last := len(c.Volumes[0].Status.Conditions) - 1
			c.Volumes[0].Status.Conditions[last].LastTransitionTime = metav1.NewTime(now)
		}, []string{"note Volume pvc-a-1 Resizing"}},
		{"a pool's path was changed", func(c *Cluster) {
			c.Volumes[0].Status.Path = "/elsewhere/pvc-a-1/data"
		}, []string{"critical Volume pvc-a-1 PathChanged"}},
		{"an orphan is kept", func(c *Cluster) {
			c.Volumes[0].Labels[v1alpha1.LabelOrphaned] = "true"
			c.PVs = c.PVs[1:]
		}, []string{"note Volume pvc-a-1 Orphaned"}},
		{"a volume is to go, and something holds it", func(c *Cluster) {
			c.Volumes[0].Spec.DesiredState = v1alpha1.DesiredDeleted
			set(&c.Volumes[0], "InUse", true, "Mounted")
		}, []string{"warning Volume pvc-a-1 Mounted"}},
		{"a volume is to go, and its pod is just ending", func(c *Cluster) {
			c.Volumes[0].Spec.DesiredState = v1alpha1.DesiredDeleted
			set(&c.Volumes[0], "InUse", true, "Mounted")
			last := len(c.Volumes[0].Status.Conditions) - 1
			c.Volumes[0].Status.Conditions[last].LastTransitionTime = metav1.NewTime(now)
		}, nil},
		{"a volume is in the trash", func(c *Cluster) {
			c.Volumes[0].Spec.DesiredState = v1alpha1.DesiredTrashed
			c.Volumes[0].Status.Phase = v1alpha1.VolumeTrashed
			set(&c.Volumes[0], "Ready", false, "Removed")
		}, nil},
		{"a Volume object is gone", func(c *Cluster) { c.Volumes = c.Volumes[1:] },
			[]string{"warning PersistentVolume pvc-a ObjectMissing"}},
		{"a claim lost its PersistentVolume", func(c *Cluster) {
			c.Claims[0].Status.Phase = corev1.ClaimLost
		}, []string{"critical PersistentVolumeClaim shop/data-a ClaimLost"}},

		{"no pod uses a claim", func(c *Cluster) { waiter(c, "quarry", hour); c.Pods = nil }, nil},
		{"a claim was just made", func(c *Cluster) { waiter(c, "quarry", moment) }, nil},
		{"nobody says anything of a claim", func(c *Cluster) { waiter(c, "quarry", hour) },
			[]string{"warning PersistentVolumeClaim shop/new NoAnswer"}},
		{"nobody says anything of a claim that waits for no pod", func(c *Cluster) {
			waiter(c, "now", hour)
			c.Pods = nil
		}, []string{"warning PersistentVolumeClaim shop/new NoAnswer"}},
		{"a claim is of somebody else", func(c *Cluster) { waiter(c, "other", hour) }, nil},
		{"a claim is being deleted", func(c *Cluster) {
			waiter(c, "quarry", hour).DeletionTimestamp = &before
		}, nil},
		{"a claim's class is gone", func(c *Cluster) {
			waiter(c, "quarry", hour).Annotations[annProvisioner] = v1alpha1.LocalProvisioner
			delete(c.Classes, "quarry")
		}, []string{"warning PersistentVolumeClaim shop/new NoStorageClass"}},
		{"the controller says why", func(c *Cluster) {
			waiter(c, "quarry", hour)
			c.Events = []corev1.Event{
				event("new", "Normal", "Provisioning", "it tries", time.Second),
				event("new", "Warning", "ProvisioningFailed", "older", time.Hour),
				event("new", "Warning", "ProvisioningFailed", `failed to provision volume with StorageClass "quarry": `+
					"node a: no room (make room in a pool (kubectl get pools.quarry.storage), add a disk, or ask for less)",
					time.Minute),
			}
		}, []string{"warning PersistentVolumeClaim shop/new InsufficientCapacity"}},
		{"the controller says something without a hint", func(c *Cluster) {
			waiter(c, "quarry", moment)
			c.Events = []corev1.Event{event("new", "Warning", "PodBypassesScheduler", "so it is", 0)}
		}, []string{"warning PersistentVolumeClaim shop/new PodBypassesScheduler"}},
		{"the scheduler says why", func(c *Cluster) {
			waiter(c, "quarry", hour)
			c.Events = []corev1.Event{event("web", "Warning", "FailedScheduling", "0/2 nodes", 0)}
		}, []string{"warning PersistentVolumeClaim shop/new FailedScheduling"}},
		{"an attempt is refused, after the event", func(c *Cluster) {
			waiter(c, "quarry", hour)
			v := volume("pvc-new-1", "a")
			v.Spec.Claim.UID, v.Status.Phase = "new", v1alpha1.VolumeRefused
			set(&v, "Ready", false, "TooSmall")
			c.Volumes = append(c.Volumes, v)
			c.Events = []corev1.Event{event("new", "Warning", "ProvisioningFailed", "older", 2*time.Hour)}
		}, []string{"warning PersistentVolumeClaim shop/new TooSmall"}},
		{"an attempt was refused, and the event is newer", func(c *Cluster) {
			waiter(c, "quarry", hour)
			v := volume("pvc-new-1", "a")
			v.Spec.Claim.UID, v.Status.Phase = "new", v1alpha1.VolumeRefused
			set(&v, "Ready", false, "TooSmall")
			c.Volumes = append(c.Volumes, v)
			c.Events = []corev1.Event{event("new", "Warning", "NoSuitableNode", "newer", time.Minute)}
		}, []string{"warning PersistentVolumeClaim shop/new NoSuitableNode"}},
		{"a volume is being made", func(c *Cluster) {
			waiter(c, "quarry", moment)
			c.Volumes = append(c.Volumes, attemptFor("new", "a"))
		}, nil},
		{"a volume is being made for an hour", func(c *Cluster) {
			waiter(c, "quarry", hour)
			c.Volumes = append(c.Volumes, attemptFor("new", "a"))
		}, []string{"warning PersistentVolumeClaim shop/new InProgress"}},
		{"a volume is to be made by an agent that is not there", func(c *Cluster) {
			waiter(c, "quarry", moment)
			c.Volumes = append(c.Volumes, attemptFor("new", "a"))
			c.Agents = c.Agents[1:]
		}, []string{"critical Node a NoAgent", "warning PersistentVolumeClaim shop/new AgentNotReady"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := healthy()
			test.change(c)
			s := c.Status()

			var got []string
			for _, f := range s.Findings {
				got = append(got, fmt.Sprintf("%s %s %s %s", f.Severity, f.Kind, f.Object(), f.Reason))
				assert.NotEmpty(t, f.Message)
				if f.Severity != Note && f.Reason != "PodBypassesScheduler" && f.Message != "newer" {
					assert.NotEmpty(t, f.Remedy, "%s: what is to be done", f.Reason)
				}
			}
			require.Equal(t, test.want, got)
			wrong := slices.ContainsFunc(test.want, func(f string) bool { return !strings.HasPrefix(f, "note") })
			require.Equal(t, !wrong, s.Healthy)
		})
	}
}

func attemptFor(claim, node string) v1alpha1.Volume {
	v := volume("pvc-"+claim+"-1", node)
	v.Spec.Claim.UID, v.Status = types.UID(claim), v1alpha1.VolumeStatus{}
	set(&v, "Ready", false, v1alpha1.ReasonCreating)
	return v
}

// TestTheOrderIsOne proves that a look leads to the same words whatever the order
// in which the API server lists.
func TestTheOrderIsOne(t *testing.T) {
	broken := func() *Cluster {
		c := healthy()
		for i := range c.Volumes {
			set(&c.Volumes[i], "Ready", false, "ReadOnly")
		}
		c.Pools[0].Status.Available = new(resource.MustParse("1Gi"))
		waiter(c, "quarry", time.Hour)
		return c
	}
	one, other := broken(), broken()
	slices.Reverse(other.Volumes)
	slices.Reverse(other.Pools)
	slices.Reverse(other.Claims)
	slices.Reverse(other.Agents)
	slices.Reverse(other.PVs)
	require.Equal(t, one.Status(), other.Status())
	require.Len(t, one.Status().Findings, 4)
}

func TestGroups(t *testing.T) {
	f := func(name, reason, remedy string) Finding {
		return Finding{Severity: Warning, Kind: KindClaim, Name: name, Reason: reason, Remedy: remedy}
	}
	groups := Groups([]Finding{f("a", "X", "do"), f("b", "X", "do"), f("c", "X", "do else"), f("d", "Y", "do")})
	var names []string
	for _, g := range groups {
		text := g.Reason
		for _, f := range g.Findings {
			text += " " + f.Name
		}
		names = append(names, text)
	}
	require.Equal(t, []string{"X a b", "X c", "Y d"}, names)
}

// TestChaptersExist proves that every remedy leads to a chapter that is there.
func TestChaptersExist(t *testing.T) {
	there := map[string]bool{}
	for _, page := range []string{"docs/runbook.md", "docs/guides/kubectl-quarry.md"} {
		text, err := os.ReadFile("../../" + page)
		require.NoError(t, err)
		for line := range strings.SplitSeq(string(text), "\n") {
			if title, is := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); is && strings.HasPrefix(line, "#") {
				anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(title), "")
				there[page+"#"+strings.ReplaceAll(anchor, " ", "-")] = true
			}
		}
	}

	named := map[string]bool{}
	files, err := os.ReadDir(".")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		text, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`chapter\("([^"]+)"\)`).FindAllStringSubmatch(string(text), -1) {
			named[chapter(m[1])] = true
		}
		for _, m := range regexp.MustCompile(`"(docs/[a-z/-]+\.md#[^"]+)"`).FindAllStringSubmatch(string(text), -1) {
			named[m[1]] = true
		}
	}
	delete(named, "docs/runbook.md#") // chapter itself
	require.Greater(t, len(named), 10)
	for anchor := range named {
		assert.True(t, there[anchor], anchor)
	}
}

// TestEveryReasonHasARemedy proves that no reason that an agent gives for a pool
// is left without one.
func TestEveryReasonHasARemedy(t *testing.T) {
	text, err := os.ReadFile("../../nodeagent/disk/offline.go")
	require.NoError(t, err)
	reasons := regexp.MustCompile(`Offline\w+ += "(\w+)"`).FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(reasons), 10)
	for _, m := range reasons {
		assert.Contains(t, ofPools, m[1])
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 1: "1B", 1023: "1023B", 1 << 10: "1Ki", 1536 << 20: "1.5Gi", 100 << 30: "100Gi",
		9<<30 + 900<<20: "9.9Gi", 150<<30 + 1<<29: "150Gi", 1 << 60: "1Ei",
	} {
		require.Equal(t, want, Size(n))
	}
}

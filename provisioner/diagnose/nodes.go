package diagnose

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// starting is how long a pod of ours may take to become ready before anybody is
// called: an agent brings up its volumes first.
const starting = 2 * time.Minute

// AgentState is what is said of a node's agent.
type AgentState string

// States of an agent.
const (
	AgentReady    AgentState = "Ready"
	AgentStarting AgentState = "Starting"
	AgentNotReady AgentState = "NotReady"
	AgentMissing  AgentState = "Missing"
)

// Node is a node that has an agent, a pool or a volume. Its fields are part of
// what the commands print as JSON.
type Node struct {
	Name string `json:"name"`
	// Exists is false where there is no Node object (any more), and Ready is
	// its condition.
	Exists bool       `json:"exists"`
	Ready  bool       `json:"ready"`
	Agent  AgentState `json:"agent"`
	// AgentPod is NAMESPACE/NAME of the agent's pod.
	AgentPod string `json:"agentPod,omitempty"`
	// Image is the agent's.
	Image      string `json:"image,omitempty"`
	PoolsReady int    `json:"poolsReady"`
	Pools      int    `json:"pools"`
	Volumes    int    `json:"volumes"`
	// CapacityBytes and AvailableBytes are of the node's pools together; pools
	// that share a filesystem count once.
	CapacityBytes  int64 `json:"capacityBytes"`
	AvailableBytes int64 `json:"availableBytes"`
}

// nodes are the nodes that Quarry has to do with, by name.
func (c *Cluster) nodes() []Node {
	all := map[string]*Node{}
	node := func(name string) *Node {
		if all[name] == nil {
			n := &Node{Name: name, Agent: AgentMissing}
			if object := c.Nodes[name]; object != nil {
				n.Exists, n.Ready = true, isNodeReady(object)
			}
			all[name] = n
		}

		return all[name]
	}

	for i := range c.Agents {
		if pod := &c.Agents[i]; pod.Spec.NodeName != "" {
			c.agent(node(pod.Spec.NodeName), pod)
		}
	}

	counted := map[string]bool{}
	for i := range c.Pools {
		pool := &c.Pools[i]
		n := node(pool.Spec.NodeName)
		n.Pools++

		if readyPool(pool) {
			n.PoolsReady++
		}

		fs := pool.Spec.NodeName + " " + cmp.Or(pool.Status.FilesystemID, pool.Name)
		if !counted[fs] {
			counted[fs] = true
			n.CapacityBytes += bytesOf(pool.Status.Capacity)
			n.AvailableBytes += bytesOf(pool.Status.Available)
		}
	}

	for i := range c.Volumes {
		if v := &c.Volumes[i]; holdsData(v) {
			node(v.Spec.NodeName).Volumes++
		}
	}

	out := make([]Node, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, *all[name])
	}

	return out
}

// agent puts into n what a pod says of the node's agent, if that is better than
// what another one said: during a roll-out there are two.
func (c *Cluster) agent(n *Node, pod *corev1.Pod) {
	better := []AgentState{AgentMissing, AgentNotReady, AgentStarting, AgentReady}
	state := c.podState(pod)
	if slices.Index(better, state) <= slices.Index(better, n.Agent) && n.AgentPod != "" {
		return
	}
	n.Agent, n.AgentPod, n.Image = state, pod.Namespace+"/"+pod.Name, imageOf(pod)
}

func (c *Cluster) podState(pod *corev1.Pod) AgentState {
	switch {
	case isPodReady(pod):
		return AgentReady
	case pod.DeletionTimestamp == nil && c.since(pod.CreationTimestamp.Time) < starting &&
		!restarted(pod):
		return AgentStarting
	}
	return AgentNotReady
}

// restarted reports whether a container of the pod ended at least once.
func restarted(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses,
		func(s corev1.ContainerStatus) bool { return s.RestartCount > 0 })
}

func isPodReady(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions,
		func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
}

func isNodeReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// imageOf is the image of the pod's first container, which is Quarry's.
func imageOf(pod *corev1.Pod) string {
	if len(pod.Spec.Containers) == 0 {
		return ""
	}
	return pod.Spec.Containers[0].Image
}

// troubleOf says what holds a pod up, in the words of its containers' states or
// of the scheduler.
func troubleOf(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			return s.State.Waiting.Reason
		case s.State.Terminated != nil && s.State.Terminated.Reason != "":
			return s.State.Terminated.Reason
		}
	}

	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			return c.Message
		}
	}

	if pod.DeletionTimestamp != nil {
		return "it is shutting down"
	}

	return "it is " + string(cmp.Or(pod.Status.Phase, corev1.PodPending))
}

// nodeFindings says what is wrong with nodes and their agents.
func (c *Cluster) nodeFindings(nodes []Node) []Finding {
	var out []Finding
	for i := range nodes {
		if f := c.nodeFinding(&nodes[i]); f != nil {
			out = append(out, *f)
		}
	}
	return out
}

// nodeFinding is the one thing to be said of a node; nil if there is nothing. A
// node that does not run is the cause of all else that is wrong with it.
func (c *Cluster) nodeFinding(n *Node) *Finding {
	f := &Finding{Severity: Critical, Kind: KindNode, Name: n.Name, Node: n.Name}
	concerns := fmt.Sprintf("%s there cannot be used or looked after", count(n.Volumes, "volume"))

	switch {
	case !n.Exists && n.Volumes == 0 && n.Agent == AgentMissing:
		f.Severity, f.Reason = Note, v1alpha1.ReasonNodeGone
		f.Message = "there is no such Node any more; its Pool objects remain, and " +
			"remember its disks"
		f.Remedy = "nothing: they go after a day. If the machine comes back, so do its pools"
	case !n.Exists:
		f.Reason = v1alpha1.ReasonNodeGone
		f.Message = fmt.Sprintf("there is no such Node (any more), and it has %s",
			count(n.Volumes, "volume"))
		f.Remedy = "if it comes back nothing is to be done; if not, give up its claims"
		f.Runbook = chapter("a-node-is-lost")
	case !n.Ready:
		f.Reason = ReasonNodeNotReady
		f.Message = "the node is not ready: " + concerns
		f.Remedy = "bring the node back; its volumes are on its disks. If it will not come back, " +
			"give up its claims"
		f.Runbook, f.Since = chapter("a-node-is-lost"), notReadySince(c.Nodes[n.Name])
	case n.Agent == AgentMissing:
		f.Reason = ReasonNoAgent
		f.Message = "no agent runs there: " + concerns
		f.Remedy = "compare the node's taints and labels with agent.tolerations and " +
			"agent.nodeSelector of the chart's values (kubectl get daemonset -A -l " +
			"app.kubernetes.io/name=quarry)"
		f.Runbook = chapter("where-to-look")
	case n.Agent == AgentNotReady:
		pod := c.pod(n.AgentPod)
		f.Reason = v1alpha1.ReasonAgentNotReady
		f.Message = fmt.Sprintf("its agent is not ready (%s): pods keep their volumes, and none "+
			"is made, grown or deleted", troubleOf(pod))
		f.Remedy = fmt.Sprintf("kubectl -n %s logs %s -c agent%s", pod.Namespace, pod.Name,
			previous(pod))
		f.Runbook = chapter("where-to-look")
	case n.Agent == AgentStarting:
		f.Severity, f.Reason = Note, ReasonInProgress
		f.Message = "its agent is starting"
	case n.Pools == 0:
		f.Severity, f.Reason = Warning, ReasonNoPool
		f.Message = "its agent is ready and has no pool"
		f.Remedy = "name a pool for the node in the chart's values (docs/guides/pools.md), or " +
			"keep the agent away by agent.nodeSelector"
	default:
		return nil
	}

	return f
}

// previous is the flag of kubectl logs for an agent that does not stay up.
func previous(pod *corev1.Pod) string {
	if restarted(pod) {
		return " --previous"
	}
	return ""
}

func notReadySince(node *corev1.Node) *metav1.Time {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return &condition.LastTransitionTime
		}
	}
	return nil
}

// pod finds one of the agents' pods by NAMESPACE/NAME.
func (c *Cluster) pod(name string) *corev1.Pod {
	at := slices.IndexFunc(c.Agents, func(p corev1.Pod) bool {
		return p.Namespace+"/"+p.Name == name
	})
	if at < 0 {
		return &corev1.Pod{}
	}
	return &c.Agents[at]
}

// Replicas counts the controller's pods.
type Replicas struct {
	Ready int `json:"ready"`
	Total int `json:"total"`
}

func (c *Cluster) controller() (r Replicas) {
	for i := range c.Controllers {
		r.Total++
		if isPodReady(&c.Controllers[i]) {
			r.Ready++
		}
	}
	return r
}

// controllerFinding says that nobody decides; nil if a controller is ready.
func (c *Cluster) controllerFinding() *Finding {
	r := c.controller()
	if r.Ready > 0 {
		return nil
	}

	f := &Finding{
		Severity: Critical, Kind: KindController, Name: "quarry-controller",
		Reason:  ReasonNoController,
		Message: "no pod of the controller exists: no claim is served, and none is deleted",
		Remedy: "kubectl quarry doctor says what is missing; where the chart has another name, " +
			"say --controller-selector",
	}
	if r.Total == 0 {
		return f
	}

	pod := &c.Controllers[0]
	f.Message = fmt.Sprintf("none of its %s is ready (%s): no claim is served, and none is deleted",
		count(r.Total, "pod"), troubleOf(pod))
	f.Remedy = fmt.Sprintf("kubectl -n %s logs %s -c controller%s", pod.Namespace, pod.Name,
		previous(pod))
	f.Runbook = chapter("where-to-look")
	if slices.ContainsFunc(c.Controllers, func(p corev1.Pod) bool {
		return c.podState(&p) == AgentStarting
	}) {
		f.Severity = Warning
	}

	return f
}

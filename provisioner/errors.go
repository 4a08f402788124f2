package provisioner

import (
	"errors"
	"fmt"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// reasoner is an error that knows its key in the table of verdicts.
type reasoner interface {
	error
	Reason() string
}

// refusedError is an agent's refusal of one attempt: it made nothing, and holds
// nothing.
type refusedError struct {
	Node    string
	Code    string // a v1alpha1.Reason*
	Message string // the agent's own words

	wish *v1alpha1.VolumeSpec // that was refused; nil where no attempt was made
}

func (e *refusedError) Error() string  { return fmt.Sprintf("node %s: %s", e.Node, e.Message) }
func (e *refusedError) Reason() string { return e.Code }

// claimError says that a claim asks for something that this provisioner does
// not give.
type claimError struct {
	Field   string
	Message string
}

func (e *claimError) Error() string  { return e.Field + ": " + e.Message }
func (e *claimError) Reason() string { return v1alpha1.ReasonUnsupportedClaim }

// agentNotReadyError says that no agent on the node would do the work now.
type agentNotReadyError struct {
	Node string
	Why  string
	// Recorded says that a Volume object exists already, so that work may go on
	// when the agent comes back.
	Recorded bool
}

func (e *agentNotReadyError) Error() string {
	return fmt.Sprintf("waiting for the Quarry agent on node %s: %s", e.Node, e.Why)
}
func (e *agentNotReadyError) Reason() string { return v1alpha1.ReasonAgentNotReady }

// nodeGoneError says that the Node object does not exist (any more).
type nodeGoneError struct{ Node string }

func (e *nodeGoneError) Error() string  { return fmt.Sprintf("node %s does not exist", e.Node) }
func (e *nodeGoneError) Reason() string { return v1alpha1.ReasonNodeGone }

// noNodeError says that no node can take the volume of a class with
// volumeBindingMode Immediate.
type noNodeError struct{ Why string }

func (e *noNodeError) Error() string  { return "no node can take the volume: " + e.Why }
func (e *noNodeError) Reason() string { return v1alpha1.ReasonNoSuitableNode }

// pendingError says that the wish is recorded, and its outcome is not known
// yet.
type pendingError struct {
	Node string
	Why  string
}

func (e *pendingError) Error() string {
	return fmt.Sprintf("node %s has not finished making the volume: %s", e.Node, e.Why)
}
func (e *pendingError) Reason() string { return v1alpha1.ReasonPending }

// growPendingError says that the new size is recorded, and the volume does not
// have it yet.
type growPendingError struct {
	Node string
	Why  string
}

func (e *growPendingError) Error() string {
	return fmt.Sprintf("node %s has not finished growing the volume: %s", e.Node, e.Why)
}
func (e *growPendingError) Reason() string { return v1alpha1.ReasonPending }

// unavailableError says that the volume exists, was published, and cannot be
// used now. Its data is not touched.
type unavailableError struct {
	Node, Volume, Why string
}

func (e *unavailableError) Error() string {
	return fmt.Sprintf("volume %s on node %s is unavailable: %s", e.Volume, e.Node, e.Why)
}
func (e *unavailableError) Reason() string { return v1alpha1.ReasonVolumeUnavailable }

// claimGoneError says that the claim was deleted, or that another one has its
// name. No claim waits for the volume.
type claimGoneError struct{ Namespace, Name string }

func (e *claimGoneError) Error() string {
	return fmt.Sprintf("claim %s/%s was deleted", e.Namespace, e.Name)
}
func (e *claimGoneError) Reason() string { return v1alpha1.ReasonClaimGone }

// existsError says that the volume exists with other properties than those
// asked for now.
type existsError struct{ Volume, Why string }

func (e *existsError) Error() string {
	return fmt.Sprintf("volume %s exists: %s", e.Volume, e.Why)
}
func (e *existsError) Reason() string { return v1alpha1.ReasonAlreadyExists }

// notOursError says that a PersistentVolume names a volume that it does not
// belong to. Nothing was done.
type notOursError struct{ PV, Why string }

func (e *notOursError) Error() string {
	return fmt.Sprintf(
		"PersistentVolume %s is not the one its volume was made for: %s", e.PV, e.Why)
}
func (e *notOursError) Reason() string { return v1alpha1.ReasonNotOurs }

// inUseError says that the volume is to go, and that something on its node
// still uses it.
type inUseError struct{ Volume, Node, Why string }

func (e *inUseError) Error() string {
	return fmt.Sprintf("volume %s on node %s is still in use: %s", e.Volume, e.Node, e.Why)
}
func (e *inUseError) Reason() string { return v1alpha1.ReasonVolumeInUse }

// deletePendingError says that the wish to delete is recorded, and that the
// agent has not confirmed it yet.
type deletePendingError struct{ Volume, Node, Why string }

func (e *deletePendingError) Error() string {
	return fmt.Sprintf("volume %s on node %s is being deleted: %s", e.Volume, e.Node, e.Why)
}
func (e *deletePendingError) Reason() string { return v1alpha1.ReasonDeletePending }

// apiError is a failed call of the API server, before or after which nothing of
// ours happened.
type apiError struct {
	Op  string
	Err error
}

func (e *apiError) Error() string  { return e.Op + ": " + e.Err.Error() }
func (e *apiError) Unwrap() error  { return e.Err }
func (e *apiError) Reason() string { return v1alpha1.ReasonAPIError }

// verdict is what follows from an error.
type verdict struct {
	// Reason is the event's reason, and the label of the outcome metric.
	Reason string
	// State tells the external-provisioner library how to go on. Reschedule is
	// meant for claims that a pod uses; without one it has to become Finished,
	// or nothing would ever choose a node again.
	State controller.ProvisioningState
	// Hint is what a person can do about it; it ends the event's text. May be
	// empty.
	Hint string
}

// verdicts is the one table from reasons to what follows from them.
var verdicts = map[string]verdict{
	v1alpha1.ReasonInsufficientCapacity: {
		State: controller.ProvisioningReschedule,
		Hint: "make room in a pool (kubectl get pools.quarry.storage), add a disk, " +
			"or ask for less",
	},
	v1alpha1.ReasonGroupRefused: {State: controller.ProvisioningReschedule,
		Hint: "the claims of one pod are admitted together or not at all: make room for all of " +
			"them on one node"},
	v1alpha1.ReasonUnsupported: {State: controller.ProvisioningReschedule,
		Hint: "choose backend: loop, or a pool on a filesystem that can enforce the size " +
			"(docs/enforcement.md)"},
	v1alpha1.ReasonPoolNotFound: {State: controller.ProvisioningReschedule,
		Hint: "compare the class's pool and poolSelector with kubectl get pools.quarry.storage " +
			"--show-labels"},
	v1alpha1.ReasonPoolOffline: {State: controller.ProvisioningReschedule,
		Hint: "kubectl describe pools.quarry.storage says what is wrong with the disk"},
	v1alpha1.ReasonCreateFailed: {State: controller.ProvisioningReschedule,
		Hint: "the node cannot make volumes; its agent's log says more"},
	v1alpha1.ReasonTooSmall: {State: controller.ProvisioningFinished,
		Hint: "ask for at least that size, or choose another fsType"},
	v1alpha1.ReasonInvalidOptions: {State: controller.ProvisioningFinished,
		Hint: "make the StorageClass again with options that are allowed"},
	v1alpha1.ReasonSourceNotFound: {State: controller.ProvisioningFinished,
		Hint: "a copy is made on the node of its source"},
	v1alpha1.ReasonIDConflict: {State: controller.ProvisioningFinished,
		Hint: "quarry verify on that node shows what is there"},

	v1alpha1.ReasonInvalidParameter: {State: controller.ProvisioningFinished,
		Hint: "parameters cannot be changed: delete the StorageClass and make it again"},
	v1alpha1.ReasonUnsupportedClaim: {State: controller.ProvisioningFinished},
	v1alpha1.ReasonAgentNotReady: {State: controller.ProvisioningNoChange,
		Hint: "provisioning goes on as soon as it is ready"},
	v1alpha1.ReasonNodeGone: {State: controller.ProvisioningReschedule,
		Hint: "remove or correct the claim's annotation volume.kubernetes.io/selected-node if no " +
			"pod uses it"},
	v1alpha1.ReasonNoSuitableNode: {
		State: controller.ProvisioningFinished,
		Hint: "make room in a pool (kubectl get pools.quarry.storage), add a disk, " +
			"or ask for less",
	},
	v1alpha1.ReasonNoMatchingPool: {State: controller.ProvisioningFinished,
		Hint: "the scheduler does not know selectors of claims: make the claim again with " +
			"another class, with a pod that goes to a node with such a pool, or label a pool"},
	v1alpha1.ReasonNotAdoptable: {State: controller.ProvisioningFinished,
		Hint: "kubectl quarry adopt --dry-run says what is there"},
	v1alpha1.ReasonPending: {State: controller.ProvisioningInBackground,
		Hint: "it goes on in the background"},
	v1alpha1.ReasonVolumeUnavailable: {State: controller.ProvisioningInBackground,
		Hint: "quarry verify on that node shows what is wrong; the data is not touched"},
	v1alpha1.ReasonClaimGone:     {State: controller.ProvisioningFinished},
	v1alpha1.ReasonAlreadyExists: {State: controller.ProvisioningFinished},
	v1alpha1.ReasonNotOurs:       {State: controller.ProvisioningFinished},
	v1alpha1.ReasonVolumeInUse: {State: controller.ProvisioningInBackground,
		Hint: "it is deleted once nothing uses it any more"},
	v1alpha1.ReasonDeletePending: {State: controller.ProvisioningInBackground,
		Hint: "it goes on in the background"},
	// Nothing is known about what the server did, but a Volume, if one was
	// written, is found again by the next try.
	v1alpha1.ReasonAPIError: {State: controller.ProvisioningNoChange},
}

// unknown is the verdict on an error, or on an agent's reason, that the table
// does not have: keep trying, lose nothing.
var unknown = verdict{Reason: "InternalError", State: controller.ProvisioningInBackground}

// judge says what follows from err. It never returns ProvisioningNoChange once
// a Volume exists, because then work may go on in the background whatever the
// error was.
func judge(err error) verdict {
	r, is := errors.AsType[reasoner](err)
	if !is {
		return unknown
	}

	v, ok := verdicts[r.Reason()]
	if !ok {
		// A newer agent may refuse for reasons this controller has never heard
		// of. The attempt is over in any case.
		if refused, is := errors.AsType[*refusedError](err); is {
			return verdict{Reason: refused.Code, State: controller.ProvisioningFinished}
		}
		return unknown
	}

	v.Reason = r.Reason()
	if notReady, is := errors.AsType[*agentNotReadyError](err); is && notReady.Recorded {
		v.State = controller.ProvisioningInBackground
	}

	return v
}

// explanation is the text of the event for err: what happened, and what to do
// about it.
func explanation(err error) string {
	v := judge(err)
	if v.Hint == "" {
		return err.Error()
	}
	return err.Error() + " (" + v.Hint + ")"
}

package provisioner

import (
	"errors"
	"fmt"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Reasons of errors that arise in the provisioner. Reasons that come from an agent are v1alpha1.Reason* as well; what gRPC
// code a CSI caller gets for each is package csi's to know.
const (
	ReasonInvalidParameter = v1alpha1.ReasonInvalidParameter
	ReasonUnsupportedClaim = v1alpha1.ReasonUnsupportedClaim
	ReasonAgentNotReady    = v1alpha1.ReasonAgentNotReady
	ReasonNodeGone         = v1alpha1.ReasonNodeGone
	ReasonNoNode           = v1alpha1.ReasonNoSuitableNode
	ReasonNoMatchingPool   = v1alpha1.ReasonNoMatchingPool
	ReasonPending          = v1alpha1.ReasonPending
	ReasonUnavailable      = v1alpha1.ReasonVolumeUnavailable
	ReasonClaimGone        = v1alpha1.ReasonClaimGone
	ReasonNotOurs          = v1alpha1.ReasonNotOurs
	ReasonInUse            = v1alpha1.ReasonVolumeInUse
	ReasonDeletePending    = v1alpha1.ReasonDeletePending
	ReasonAPI              = v1alpha1.ReasonAPIError
	ReasonAlreadyExists    = v1alpha1.ReasonAlreadyExists
)

// reasoner is an error that knows its key in the table of verdicts.
type reasoner interface {
	error
	Reason() string
}

// RefusedError is an agent's refusal of one attempt: it made nothing, and holds nothing.
type RefusedError struct {
	Node    string
	Code    string // a v1alpha1.Reason*
	Message string // the agent's own words

	wish *v1alpha1.VolumeSpec // that was refused; nil where no attempt was made
}

func (e *RefusedError) Error() string  { return fmt.Sprintf("node %s: %s", e.Node, e.Message) }
func (e *RefusedError) Reason() string { return e.Code }

// ClaimError is something a claim asks for that this provisioner does not give.
type ClaimError struct {
	Field   string
	Message string
}

func (e *ClaimError) Error() string  { return e.Field + ": " + e.Message }
func (e *ClaimError) Reason() string { return ReasonUnsupportedClaim }

// AgentNotReadyError: nobody on the node would do the work now.
type AgentNotReadyError struct {
	Node string
	Why  string
	// Recorded says that a record of the volume exists already, so that work may go on when the agent comes back.
	Recorded bool
}

func (e *AgentNotReadyError) Error() string {
	return fmt.Sprintf("waiting for the Quarry agent on node %s: %s", e.Node, e.Why)
}
func (e *AgentNotReadyError) Reason() string { return ReasonAgentNotReady }

// NodeGoneError: the Node object does not exist (any more).
type NodeGoneError struct{ Node string }

func (e *NodeGoneError) Error() string  { return fmt.Sprintf("node %s does not exist", e.Node) }
func (e *NodeGoneError) Reason() string { return ReasonNodeGone }

// NoNodeError: no node can take the volume of a class with volumeBindingMode Immediate.
type NoNodeError struct{ Why string }

func (e *NoNodeError) Error() string  { return "no node can take the volume: " + e.Why }
func (e *NoNodeError) Reason() string { return ReasonNoNode }

// PendingError: the wish is recorded and its outcome is not known yet.
type PendingError struct {
	Node string
	Why  string
}

func (e *PendingError) Error() string {
	return fmt.Sprintf("node %s has not finished making the volume: %s", e.Node, e.Why)
}
func (e *PendingError) Reason() string { return ReasonPending }

// GrowPendingError: the new size is recorded, and the volume does not have it yet.
type GrowPendingError struct {
	Node string
	Why  string
}

func (e *GrowPendingError) Error() string {
	return fmt.Sprintf("node %s has not finished growing the volume: %s", e.Node, e.Why)
}
func (e *GrowPendingError) Reason() string { return ReasonPending }

// UnavailableError: the volume exists, was published, and cannot be used now. Its data is not touched.
type UnavailableError struct {
	Node, Volume, Why string
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("volume %s on node %s is unavailable: %s", e.Volume, e.Node, e.Why)
}
func (e *UnavailableError) Reason() string { return ReasonUnavailable }

// ClaimGoneError: the claim was deleted, or another one has its name. Nobody waits for the volume.
type ClaimGoneError struct{ Namespace, Name string }

func (e *ClaimGoneError) Error() string {
	return fmt.Sprintf("claim %s/%s was deleted", e.Namespace, e.Name)
}
func (e *ClaimGoneError) Reason() string { return ReasonClaimGone }

// ExistsError: the volume exists with other properties than those asked for now.
type ExistsError struct{ Volume, Why string }

func (e *ExistsError) Error() string  { return fmt.Sprintf("volume %s exists: %s", e.Volume, e.Why) }
func (e *ExistsError) Reason() string { return ReasonAlreadyExists }

// NotOursError: a PersistentVolume names a volume that it is not the PersistentVolume of. Nothing was done.
type NotOursError struct{ PV, Why string }

func (e *NotOursError) Error() string {
	return fmt.Sprintf("PersistentVolume %s is not the one its volume was made for: %s", e.PV, e.Why)
}
func (e *NotOursError) Reason() string { return ReasonNotOurs }

// InUseError: the volume is to go, and something on its node still uses it.
type InUseError struct{ Volume, Node, Why string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("volume %s on node %s is still in use: %s", e.Volume, e.Node, e.Why)
}
func (e *InUseError) Reason() string { return ReasonInUse }

// DeletePendingError: the wish to delete is recorded, and the agent has not confirmed it yet.
type DeletePendingError struct{ Volume, Node, Why string }

func (e *DeletePendingError) Error() string {
	return fmt.Sprintf("volume %s on node %s is being deleted: %s", e.Volume, e.Node, e.Why)
}
func (e *DeletePendingError) Reason() string { return ReasonDeletePending }

// APIError is a failed call of the API server, before or after which nothing of ours happened.
type APIError struct {
	Op  string
	Err error
}

func (e *APIError) Error() string  { return e.Op + ": " + e.Err.Error() }
func (e *APIError) Unwrap() error  { return e.Err }
func (e *APIError) Reason() string { return ReasonAPI }

// Verdict is what follows from an error.
type Verdict struct {
	// Reason is the event's reason, and the label of the outcome metric.
	Reason string
	// State tells the external-provisioner library how to go on. Reschedule is meant for claims that a pod uses;
	// without one it has to become Finished, or nothing would ever choose a node again.
	State controller.ProvisioningState
	// Hint is what a person can do about it; it ends the event's text. May be empty.
	Hint string
}

// verdicts is the one table from reasons to what follows from them.
var verdicts = map[string]Verdict{
	v1alpha1.ReasonInsufficientCapacity: {State: controller.ProvisioningReschedule,
		Hint: "make room in a pool (kubectl get pools.quarry.storage), add a disk, or ask for less"},
	v1alpha1.ReasonGroupRefused: {State: controller.ProvisioningReschedule,
		Hint: "the claims of one pod are admitted together or not at all: make room for all of them on one node"},
	v1alpha1.ReasonUnsupported: {State: controller.ProvisioningReschedule,
		Hint: "choose backend: loop, or a pool on a filesystem that can enforce the size (docs/enforcement.md)"},
	v1alpha1.ReasonPoolNotFound: {State: controller.ProvisioningReschedule,
		Hint: "compare the class's pool and poolSelector with kubectl get pools.quarry.storage --show-labels"},
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

	ReasonInvalidParameter: {State: controller.ProvisioningFinished,
		Hint: "parameters cannot be changed: delete the StorageClass and make it again"},
	ReasonUnsupportedClaim: {State: controller.ProvisioningFinished},
	ReasonAgentNotReady: {State: controller.ProvisioningNoChange,
		Hint: "provisioning goes on as soon as it is ready"},
	ReasonNodeGone: {State: controller.ProvisioningReschedule,
		Hint: "remove or correct the claim's annotation volume.kubernetes.io/selected-node if no pod uses it"},
	ReasonNoNode: {State: controller.ProvisioningFinished,
		Hint: "make room in a pool (kubectl get pools.quarry.storage), add a disk, or ask for less"},
	ReasonNoMatchingPool: {State: controller.ProvisioningFinished,
		Hint: "the scheduler does not know selectors of claims: make the claim again with another class, with a pod that goes to a node with such a pool, or label a pool"},
	v1alpha1.ReasonNotAdoptable: {State: controller.ProvisioningFinished,
		Hint: "kubectl quarry adopt --dry-run says what is there"},
	ReasonPending: {State: controller.ProvisioningInBackground,
		Hint: "it goes on in the background"},
	ReasonUnavailable: {State: controller.ProvisioningInBackground,
		Hint: "quarry verify on that node shows what is wrong; the data is not touched"},
	ReasonClaimGone:     {State: controller.ProvisioningFinished},
	ReasonAlreadyExists: {State: controller.ProvisioningFinished},
	ReasonNotOurs:       {State: controller.ProvisioningFinished},
	ReasonInUse: {State: controller.ProvisioningInBackground,
		Hint: "it is deleted once nothing uses it any more"},
	ReasonDeletePending: {State: controller.ProvisioningInBackground,
		Hint: "it goes on in the background"},
	// Nothing is known about what the server did, but a record, if one was written, is found again by the next try.
	ReasonAPI: {State: controller.ProvisioningNoChange},
}

// unknown is the verdict on an error, or on an agent's reason, that the table does not have: keep trying, lose nothing.
var unknown = Verdict{Reason: "InternalError", State: controller.ProvisioningInBackground}

// Judge says what follows from err. It never returns ProvisioningNoChange once a record exists, because then work may
// go on in the background whatever the error was.
func Judge(err error) Verdict {
	var r reasoner
	if !errors.As(err, &r) {
		return unknown
	}
	v, ok := verdicts[r.Reason()]
	if !ok {
		// A newer agent may refuse for reasons this controller has never heard of. The attempt is over in any case.
		if refused := (*RefusedError)(nil); errors.As(err, &refused) {
			return Verdict{Reason: refused.Code, State: controller.ProvisioningFinished}
		}
		return unknown
	}
	v.Reason = r.Reason()
	if notReady := (*AgentNotReadyError)(nil); errors.As(err, &notReady) && notReady.Recorded {
		v.State = controller.ProvisioningInBackground
	}
	return v
}

// Explain is the text of the event for err: what happened, and what to do about it.
func Explain(err error) string {
	v := Judge(err)
	if v.Hint == "" {
		return err.Error()
	}
	return err.Error() + " (" + v.Hint + ")"
}

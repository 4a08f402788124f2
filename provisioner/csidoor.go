package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// CSI is the CSI front door: it makes volumes for package csi by way of Volume
// objects. It keeps nothing that matters, so every replica serves it to the
// sidecars beside it.
type CSI struct {
	*frontDoor
	// refused are the nodes that refused a volume: no sidecar remembers them.
	refused recentRefusals
}

// everyReplica is a part of the program that runs whether this replica leads or
// not, once the caches are filled.
type everyReplica func(context.Context) error

// Start implements manager.Runnable.
func (f everyReplica) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (everyReplica) NeedLeaderElection() bool { return false }

func (c *CSI) records() *volumeObjects { return c.volumes }

// explained is an error with the advice that belongs to its reason.
type explained struct{ error }

func (e explained) Error() string { return explanation(e.error) }
func (e explained) Unwrap() error { return e.error }

func explain(err error) error {
	if err == nil {
		return nil
	}
	return explained{err}
}

// Ensure makes the volume called name, which is its PersistentVolume's name,
// and returns it ready and published. The same name on another node is another
// attempt: one that was never published is given up first.
func (c *CSI) Ensure(
	ctx context.Context,
	name string,
	wish v1alpha1.VolumeSpec,
	nodes []string,
) (*v1alpha1.Volume, error) {
	v, err := c.ensure(ctx, name, wish, nodes)
	if refused, is := errors.AsType[*refusedError](err); is {
		c.refused.add(name, refused.Node, time.Now())
	}
	if err != nil {
		c.publishCapacity(ctx, err)
	}
	return v, explain(err)
}

func (c *CSI) ensure(
	ctx context.Context,
	name string,
	wish v1alpha1.VolumeSpec,
	nodes []string,
) (*v1alpha1.Volume, error) {
	if err := c.fromClaim(ctx, &wish); err != nil {
		return nil, err
	}

	var err error
	if wish.NodeName, err = c.node(ctx, name, &wish, nodes); err != nil {
		return nil, err
	}

	v, err := c.volumes.Ensure(ctx, name, wish)
	if err != nil {
		return nil, err
	}
	if !sameVolume(&v.Spec, &wish) {
		return nil, &existsError{v.Name, "it was made with other parameters than those given now"}
	}

	return v, nil
}

// sameVolume compares a volume that is there with what is asked for now, but
// for its size, which may have grown, and for what follows from a claim that
// may be gone by now.
func sameVolume(have, want *v1alpha1.VolumeSpec) bool {
	comparable := func(s *v1alpha1.VolumeSpec) *v1alpha1.VolumeSpec {
		n := s.DeepCopy()
		n.NodeName, n.Capacity, n.AccessModes, n.StorageClassName = "", resource.Quantity{}, nil, ""
		return n
	}
	return sameWish(comparable(have), comparable(want))
}

// fromClaim adds what only the cluster knows of the claim a volume is for: its
// class, its labels and the other claims of its pod. A claim that is gone, or
// another one of that name, adds nothing: the sidecar knows best whether it
// still wants it.
func (c *CSI) fromClaim(ctx context.Context, wish *v1alpha1.VolumeSpec) error {
	ref := wish.Claim
	if ref == nil {
		return nil
	}

	key := client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	var claim corev1.PersistentVolumeClaim
	err := c.client.Get(ctx, key, &claim)

	// The sidecar's watch may be ahead of ours: it asks once the scheduler has
	// chosen a node. Then our cache may lack the pod's other claims as well.
	claimsIn := c.claimsIn
	if apierrors.IsNotFound(err) || err == nil && claim.Annotations[annSelectedNode] == "" &&
		claim.Spec.VolumeName == "" && c.isOurs(&claim) {
		claimsIn = c.claimsNow
		claim = corev1.PersistentVolumeClaim{}
		err = c.live.Get(ctx, key, &claim)
	}
	if apierrors.IsNotFound(err) || err == nil && ref.UID != "" && claim.UID != ref.UID {
		return nil
	}
	if err != nil {
		return &apiError{"read claim " + ref.Namespace + "/" + ref.Name, err}
	}
	// The sidecar asks for what is left of a size that does not fit into 63
	// bits.
	if size := claim.Spec.Resources.Requests[corev1.ResourceStorage]; tooLarge(size) {
		return &claimError{"resources.requests.storage", fmt.Sprintf(
			"%s: no volume is larger than %s", size.String(), largestVolume.String())}
	}

	wish.Claim = referenceTo(&claim)
	if claim.Spec.StorageClassName != nil {
		wish.StorageClassName = *claim.Spec.StorageClassName
		var class storagev1.StorageClass
		if err := c.client.Get(ctx, client.ObjectKey{Name: wish.StorageClassName},
			&class); err == nil {
			wish.ReclaimPolicy = reclaimPolicy(&class)
		}
	}

	if wish.Parameters["poolSpread"] == string(parameters.SpreadApart) {
		if wish.SpreadGroup, err = c.pods().spreadGroup(ctx, &claim); err != nil {
			return err
		}
	}

	wish.Admission, err = c.pods().admissionGroup(ctx, &claim, claimsIn, c.isOurs)
	return err
}

// node chooses where the volume is made: where an attempt is under way already,
// or on the one node asked for, or on the one with the most room among those
// that will do.
func (c *CSI) node(
	ctx context.Context,
	name string,
	wish *v1alpha1.VolumeSpec,
	nodes []string,
) (string, error) {
	if len(nodes) == 1 {
		if _, err := getNode(ctx, c.client, c.live, nodes[0]); err != nil {
			return "", err
		}
		return nodes[0], nil
	}

	existing, err := c.volumes.Of(ctx, name)
	if err != nil {
		return "", err
	}

	for i := range existing {
		v := &existing[i]
		allowed := len(nodes) == 0 || slices.Contains(nodes, v.Spec.NodeName)
		if v.Spec.DesiredState == v1alpha1.DesiredPresent &&
			(isServed(v) || allowed && !isRefused(v)) {
			return v.Spec.NodeName, nil
		}
	}

	pl, err := c.placement(ctx, c.refused.of(name))
	if err != nil {
		return "", err
	}
	if len(nodes) > 0 {
		pl.nodes = slices.DeleteFunc(slices.Clone(pl.nodes), func(n corev1.Node) bool {
			return !slices.Contains(nodes, n.Name)
		})
	}

	return pl.pick(&storagev1.StorageClass{}, parametersOf(wish), wish.Capacity.Value())
}

// parametersOf are the parameters that decide which pools will do.
func parametersOf(wish *v1alpha1.VolumeSpec) parameters.Set {
	return parameters.Set{
		Backend:      wish.Backend,
		Enforcement:  wish.Enforcement,
		Pool:         wish.Pool,
		PoolSelector: wish.PoolSelector,
	}
}

// publishCapacity publishes what a node that refused a volume still has,
// before the sidecar asks it to choose again.
func (c *CSI) publishCapacity(ctx context.Context, err error) {
	refused, is := errors.AsType[*refusedError](err)
	if !is || judge(err).State != controller.ProvisioningReschedule {
		return
	}
	if err := c.publishRefusal(ctx, refused.Node, refused); err != nil {
		log.FromContext(ctx).Error(err,
			"Cannot publish the capacity of a node that refused a volume", "node", refused.Node)
	}
}

// Room returns how much can be promised to volumes such as wish on a node, or
// on all, and the largest one, in bytes.
func (c *CSI) Room(
	ctx context.Context,
	node string,
	wish v1alpha1.VolumeSpec,
) (available, largest int64, err error) {
	pools, err := c.pools(ctx)
	if err != nil {
		return 0, 0, explain(err)
	}

	for name, of := range pools {
		if ready, _ := c.agents.Ready(name); !ready || node != "" && name != node {
			continue
		}
		r := roomIn(of, parametersOf(&wish))
		available += r.Available
		largest = max(largest, r.Largest)
	}

	return available, largest, nil
}

// notFoundError: there is no volume of that id.
type notFoundError struct{ id string }

func (e *notFoundError) Error() string  { return "there is no volume " + e.id }
func (e *notFoundError) Reason() string { return v1alpha1.ReasonVolumeNotFound }

// Get returns a volume of this door that can be used, or could if its disk were
// there.
func (c *CSI) Get(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	v := &v1alpha1.Volume{}
	for _, reader := range []client.Reader{c.client, c.live} {
		err := reader.Get(ctx, client.ObjectKey{Name: id}, v)
		if err == nil && isCSI(v) {
			return v, nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, explain(&apiError{"read Volume " + id, err})
		}
	}
	return nil, &notFoundError{id}
}

// isCSI reports whether callers of this door know of a volume.
func isCSI(v *v1alpha1.Volume) bool {
	return v.Spec.Provisioner == v1alpha1.CSIDriver && WasReady(v) &&
		v.Spec.DesiredState == v1alpha1.DesiredPresent
}

// List returns the volumes of this door, live: a caller that just made or
// deleted one expects to see that, whichever replica it asked, and a cache is a
// moment behind.
func (c *CSI) List(ctx context.Context) ([]v1alpha1.Volume, error) {
	var list v1alpha1.VolumeList
	if err := c.live.List(ctx, &list); err != nil {
		return nil, explain(&apiError{"list Volumes", err})
	}
	return slices.DeleteFunc(list.Items, func(v v1alpha1.Volume) bool { return !isCSI(&v) }), nil
}

// Expand asks for a size and waits until the volume's node has grown it, or
// says that it cannot. A smaller size than one that could not be had takes that
// wish back.
func (c *CSI) Expand(ctx context.Context, id string, bytes int64) (*v1alpha1.Volume, error) {
	v, err := c.expand(ctx, id, bytes)
	return v, explain(err)
}

func (c *CSI) expand(ctx context.Context, id string, bytes int64) (*v1alpha1.Volume, error) {
	changes := c.volumes.changed.subscribe(id)
	defer changes.Close()

	v := &v1alpha1.Volume{}
	for {
		if err := c.live.Get(ctx, client.ObjectKey{Name: id},
			v); apierrors.IsNotFound(err) || err == nil && !isCSI(v) {
			return nil, &notFoundError{id}
		} else if err != nil {
			return nil, &apiError{"read Volume " + id, err}
		}

		if size, too := c.claimTooLarge(ctx, v); too {
			return nil, &refusedError{
				Node: v.Spec.NodeName,
				Code: v1alpha1.ReasonResizeInfeasible,
				Message: fmt.Sprintf(
					"the claim asks for %s, and no volume is larger than %s",
					size.String(),
					largestVolume.String(),
				),
			}
		}
		if have := v.Status.Capacity; have != nil && have.Value() >= bytes &&
			v.Spec.Capacity.Cmp(*have) <= 0 {
			return v, nil
		}
		if v.Spec.Capacity.Value() == bytes {
			break
		}

		base := v.DeepCopy()
		v.Spec.Capacity = *resource.NewQuantity(bytes, resource.BinarySI)
		err := c.client.Patch(
			ctx,
			v,
			client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}),
		)
		if err == nil {
			break
		}
		if !apierrors.IsConflict(err) {
			return nil, &apiError{"ask for another size of Volume " + id, err}
		}
	}

	patience := time.After(growPatience)
	for {
		resized := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionResized)
		answered := resized != nil &&
			max(resized.ObservedGeneration, v.Status.ObservedGeneration) >= v.Generation
		failed := answered && resized.Status == metav1.ConditionFalse
		switch {
		case v.Status.Capacity != nil && v.Status.Capacity.Value() >= bytes: // it never shrinks
			return v, nil
		case failed && resized.Reason == v1alpha1.ReasonResizeInfeasible:
			return nil, &refusedError{
				Node:    v.Spec.NodeName,
				Code:    resized.Reason,
				Message: resized.Message,
			}
		case failed && resized.Message != "":
			return nil, &growPendingError{
				v.Spec.NodeName,
				"it tries again after: " + resized.Message,
			}
		}

		if ready, why := c.agents.Ready(v.Spec.NodeName); !ready {
			return nil, &agentNotReadyError{Node: v.Spec.NodeName, Why: why, Recorded: true}
		}

		select {
		case newer := <-changes.C:
			if newer.UID == v.UID && newer.Generation >= v.Generation {
				v = newer.DeepCopy()
			}
		case <-patience:
			return nil, &growPendingError{v.Spec.NodeName, "its agent is at it"}
		case <-ctx.Done():
			return nil, &growPendingError{v.Spec.NodeName, "its agent is at it"}
		}
	}
}

// growPatience is how long a call waits for a growth. It is less than the 10 s
// after which the sidecar gives the call up, so that what is said of the claim
// is what holds the growth up, and not that a deadline passed.
const growPatience = 8 * time.Second

// claimTooLarge reports the size that a volume's claim asks for if that is more
// than any volume can have. The sidecar asks for what is left of it in 63 bits,
// which the volume may have already.
func (c *CSI) claimTooLarge(ctx context.Context, v *v1alpha1.Volume) (resource.Quantity, bool) {
	ref := v.Spec.Claim
	var claim corev1.PersistentVolumeClaim
	if ref == nil || c.client.Get(ctx, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	}, &claim) != nil || claim.UID != ref.UID {
		return resource.Quantity{}, false
	}

	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	return size, tooLarge(size)
}

// Delete has a volume deleted, or trashed, and returns once its node confirmed.
// A volume that does not exist is no error, unless its PersistentVolume does:
// then the Volume was lost, and the data may be there.
func (c *CSI) Delete(ctx context.Context, id string) error { return explain(c.delete(ctx, id)) }

func (c *CSI) delete(ctx context.Context, id string) error {
	if !v1alpha1.IsVolumeID(id) {
		return nil
	}

	v := &v1alpha1.Volume{}
	err := c.live.Get(ctx, client.ObjectKey{Name: id}, v)
	lost := apierrors.IsNotFound(err)
	if err != nil && !lost {
		return &apiError{"read Volume " + id, err}
	}

	pvName := v.Labels[v1alpha1.LabelPVName]
	if lost {
		if pvName = pvOf(id); pvName == "" {
			return nil
		}
	}

	pv, err := c.persistentVolume(ctx, pvName, id)
	if err != nil {
		return err
	}

	switch {
	case pv != nil && lost:
		if c.volumes.confirmed.has(string(pv.UID)) {
			return nil // the sidecar deletes its PersistentVolume next
		}
		o, ok := originOf(pv)
		if !ok {
			return nil
		}
		if v, err = c.volumes.forDeletion(ctx, pv, o); err != nil {
			return err
		}
	case lost:
		return nil
	case v.Spec.Provisioner != v1alpha1.CSIDriver:
		return &notOursError{pvName, fmt.Sprintf("volume %s came in by %s", id, v.Spec.Provisioner)}
	case pv != nil && pv.Status.Phase == corev1.VolumeBound:
		// A user who may write PersistentVolumes could otherwise have this
		// one's volume deleted by naming it in another.
		return &inUseError{id, v.Spec.NodeName, fmt.Sprintf(
			"PersistentVolume %s is bound to a claim", pv.Name)}
	case pv != nil && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain:
		return &notOursError{pv.Name, "its reclaim policy is Retain"}
	default:
		if other, err := c.boundElsewhere(ctx, v); err != nil {
			return err
		} else if other != "" {
			return &inUseError{id, v.Spec.NodeName, fmt.Sprintf(
				"PersistentVolume %s leads to it and is bound to a claim", other)}
		}
		if v, err = c.volumes.desire(ctx, v, wishToDelete(v)); err != nil {
			return err
		}
	}

	if err := c.awaitDeleted(ctx, v); err != nil {
		return err
	}
	if pv != nil {
		c.volumes.confirmed.add(string(pv.UID))
	}

	return nil
}

// boundElsewhere names a PersistentVolume of another name than the volume's,
// made by hand to have the data back, that is bound.
func (c *CSI) boundElsewhere(ctx context.Context, v *v1alpha1.Volume) (string, error) {
	leading, err := leadingTo(ctx, c.client, v)
	if err != nil {
		return "", err
	}

	for _, pv := range leading {
		if pv.Status.Phase == corev1.VolumeBound {
			return pv.Name, nil
		}
	}

	return "", nil
}

func (c *CSI) awaitDeleted(ctx context.Context, v *v1alpha1.Volume) error {
	exists, err := nodeExists(ctx, c.live, v.Spec.NodeName)
	if err != nil {
		return err
	}

	if !exists {
		log.FromContext(ctx).Info(
			"The node of a deleted volume does not exist any more; the record stays, so that the "+
				"data is removed if the node comes back",
			"volume", v.Name, "node", v.Spec.NodeName)
		return nil
	}

	return c.volumes.awaitGone(ctx, v)
}

// pvOf is the PersistentVolume's name in an id, "" if there is none.
func pvOf(id string) string {
	i := strings.LastIndexByte(id, '-')
	if i < 0 {
		return ""
	}
	if _, ok := attemptNumber(id[:i], id); !ok {
		return ""
	}
	return id[:i]
}

// persistentVolume returns the PersistentVolume of that name if it is the one
// of the volume, read live; nil if there is none.
func (c *CSI) persistentVolume(
	ctx context.Context,
	name, id string,
) (*corev1.PersistentVolume, error) {
	if name == "" {
		return nil, nil
	}

	pv := &corev1.PersistentVolume{}
	err := c.live.Get(ctx, client.ObjectKey{Name: name}, pv)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, &apiError{"read PersistentVolume " + name, err}
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != v1alpha1.CSIDriver ||
		pv.Spec.CSI.VolumeHandle != id {
		return nil, nil
	}

	return pv, nil
}

package provisioner

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// An index of the cache finds what an event concerns; nothing here looks
// through all objects of a kind, of which a cluster may have a hundred
// thousand. The functions are given what lies in the cache, which may be packed
// (cache_pack.go).

const (
	// indexLeadsTo is of PersistentVolumes that lead to a volume other than the
	// one their name and their facts agree on, by that volume's id, or by
	// pathKey. Nearly none does: they were made by hand.
	indexLeadsTo = "leadsTo"
	// indexNodeLoss is of PersistentVolumes whose class says what is to be done
	// when their node is lost, by that node.
	indexNodeLoss = "nodeLoss"
	// indexTrouble is of Volumes that people are to be told of, under
	// inAnyTrouble.
	indexTrouble = "trouble"
	inAnyTrouble = "any"
	// indexUnbound is of claims that are bound to nothing, under stillUnbound;
	// with their namespace.
	indexUnbound = "unbound"
	stillUnbound = "still"
)

// cacheIndexes are all indexes of the cache.
var cacheIndexes = []struct {
	object client.Object
	field  string
	of     client.IndexerFunc
}{
	{&v1alpha1.Volume{}, indexPVName, indexOfPVName},
	{&v1alpha1.Volume{}, indexTrouble, indexOfTrouble},
	{&v1alpha1.Volume{}, indexDoomed, indexOfDoomed},
	{&corev1.PersistentVolumeClaim{}, indexUnbound, indexOfUnbound},
	{&v1alpha1.Pool{}, indexPoolNode, indexPool},
	{&storagev1.CSIStorageCapacity{}, indexCapacityNode, indexCapacity},
	{&corev1.PersistentVolume{}, indexPVNode, indexPV},
	{&corev1.PersistentVolume{}, indexLeadsTo, indexOfLeadsTo},
	{&corev1.PersistentVolume{}, indexNodeLoss, indexOfNodeLoss},
}

// addIndexes adds all of them to the cache.
func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for _, index := range cacheIndexes {
		if err := indexer.IndexField(ctx, index.object, index.field, index.of); err != nil {
			return fmt.Errorf("index %T by %s: %w", index.object, index.field, err)
		}
	}
	return nil
}

func indexOfTrouble(o client.Object) []string {
	if v, ok := o.(*v1alpha1.Volume); ok && inTrouble(v) { // a packed one is not
		return []string{inAnyTrouble}
	}
	return nil
}

func indexOfUnbound(o client.Object) []string {
	// A packed one is bound.
	if claim, ok := o.(*corev1.PersistentVolumeClaim); ok && claim.Spec.VolumeName == "" {
		return []string{stillUnbound}
	}
	return nil
}

// inTrouble reports whether people are told of a volume.
func inTrouble(v *v1alpha1.Volume) bool {
	return v.Status.Phase == v1alpha1.VolumeLost || v.Status.Phase == v1alpha1.VolumeUnavailable ||
		meta.IsStatusConditionPresentAndEqual(
			v.Status.Conditions,
			v1alpha1.ConditionEnforced,
			metav1.ConditionFalse,
		)
}

func indexOfLeadsTo(o client.Object) []string {
	if pv, ok := o.(*corev1.PersistentVolume); ok { // a packed one leads nowhere else
		return leadsElsewhere(pv)
	}
	return nil
}

// pathKey is the key of a PersistentVolume for the path it names.
func pathKey(path string) string { return "path " + path }

// leadsElsewhere are the keys of a PersistentVolume in indexLeadsTo.
func leadsElsewhere(pv *corev1.PersistentVolume) []string {
	own := ""
	var keys []string
	if of, ours := originOf(pv); ours && pvOf(of.Volume) == pv.Name {
		own = of.Volume
	} else if ours {
		keys = append(keys, of.Volume)
	}

	switch {
	case pv.Spec.CSI != nil && pv.Spec.CSI.Driver == v1alpha1.CSIDriver:
		if handle := pv.Spec.CSI.VolumeHandle; handle != own {
			keys = append(keys, handle)
		}
	case pv.Spec.Local != nil:
		elements := strings.Split(pv.Spec.Local.Path, "/")
		if own != "" && slices.Contains(elements, own) {
			return nil // it is where its volume is
		}
		keys = append(keys, pathKey(pv.Spec.Local.Path))
		for _, element := range elements {
			if v1alpha1.IsVolumeID(element) {
				keys = append(keys, element)
			}
		}
	}

	slices.Sort(keys)
	return slices.Compact(keys)
}

// leadingTo are the PersistentVolumes that lead to a volume, by whatever way.
func leadingTo(
	ctx context.Context,
	cached client.Reader,
	v *v1alpha1.Volume,
) ([]corev1.PersistentVolume, error) {
	keys := []string{v.Name}
	if v.Spec.Adopt != nil {
		keys = append(keys, pathKey(v.Spec.Adopt.Path))
	}

	var found []corev1.PersistentVolume
	for _, key := range keys {
		var list corev1.PersistentVolumeList
		if err := cached.List(ctx, &list, client.MatchingFields{indexLeadsTo: key}); err != nil {
			return nil, &apiError{"list the PersistentVolumes of volume " + v.Name, err}
		}
		found = append(found, list.Items...)
	}

	var own corev1.PersistentVolume
	if name := pvOf(v.Name); name != "" {
		err := cached.Get(ctx, client.ObjectKey{Name: name}, &own)
		if client.IgnoreNotFound(err) != nil {
			return nil, &apiError{"read PersistentVolume " + name, err}
		}
		if err == nil {
			found = append(found, own)
		}
	}

	return slices.DeleteFunc(
		found,
		func(pv corev1.PersistentVolume) bool { return !LeadsTo(&pv, v) },
	), nil
}

func indexOfNodeLoss(o client.Object) []string {
	if p, quiet := o.(*packed); quiet {
		if !p.starts {
			return nil
		}
		return []string{p.node}
	}
	if pv, ok := o.(*corev1.PersistentVolume); ok {
		if of, ours := originOf(pv); ours && startsOver(of) {
			return []string{of.Node}
		}
	}
	return nil
}

// startsOver reports whether a class has claims start over when their node is
// lost.
func startsOver(of origin) bool {
	p, err := parameters.FromJSON(of.Parameters)
	return err == nil && p.OnNodeLoss != parameters.NodeLossNever
}

package provisioner

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Nearly all PersistentVolumes, claims and Volumes of a cluster are quiet:
// bound, ready, and looked at again when they change, in weeks. As Go objects
// the three of one volume take some eight kilobytes; a hundred thousand of them
// do not fit into any limit one would give to a controller. So a quiet object
// lies packed in the informer's store, in some hundred bytes, and each reader
// gets it unpacked: nothing of it is left out, and a reader cannot tell the
// difference.
//
// What reads through the cache's client sees no difference: a copy of a packed
// object is the whole one. Event handlers, predicates and indexes are given
// what lies in the store, and take it by whole.

// packed is a quiet object. It is never changed; its setters are not there.
type packed struct {
	metav1.Object // nil: the setters
	codec         *codec

	namespace, name, version string
	// uid is set for claims only.
	uid types.UID
	// volume is, of a PersistentVolume, the id of the volume behind it, and, of
	// a Volume, the name of its PersistentVolume; empty where there is none.
	volume string
	// node is the node of that volume.
	node string
	// starts is whether, of a PersistentVolume, the class says onNodeLoss.
	starts bool
	data   []byte
}

// codec packs one kind.
type codec struct {
	// fresh makes an empty object, encode and decode are its plain forms.
	fresh  func() client.Object
	encode func(client.Object) ([]byte, error)
	decode func([]byte, client.Object) error
	// quiet reports whether an object may be packed.
	quiet func(client.Object) bool
	// note fills in what is looked at without unpacking.
	note func(client.Object, *packed)

	// Objects of a kind look like each other, so the first few of them are what
	// the others are written as differences from.
	mu      sync.Mutex
	samples [][]byte
	ready   atomic.Pointer[compressor]
}

type compressor struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

// samplesWanted is how many objects are the dictionary of a kind. Tests want
// fewer.
var samplesWanted = 8

// samplesSize is how large the dictionary gets at most, in bytes.
const samplesSize = 32 << 10

// restless admits objects that do not lie packed in the cache.
var restless = predicate.NewPredicateFuncs(func(o client.Object) bool { return !isPacked(o) })

// newsOfQuiet admits what restless does, and the changes of quiet objects as
// well: all except objects that were quiet already when they were first seen.
var newsOfQuiet = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return !isPacked(e.Object) || !e.IsInInitialList },
}

// newPackers returns what packs each kind. Each cache has its own.
func newPackers() (volumes, claims, records *codec) {
	volumes = &codec{
		fresh: func() client.Object { return &corev1.PersistentVolume{} },
		encode: func(o client.Object) ([]byte, error) {
			return o.(*corev1.PersistentVolume).Marshal()
		},
		decode: func(b []byte, o client.Object) error {
			return o.(*corev1.PersistentVolume).Unmarshal(b)
		},
		quiet: func(o client.Object) bool { return isQuietPV(o.(*corev1.PersistentVolume)) },
		note: func(o client.Object, p *packed) {
			if of, ours := originOf(o.(*corev1.PersistentVolume)); ours {
				p.volume, p.node, p.starts = of.Volume, of.Node, startsOver(of)
			}
		},
	}
	claims = &codec{
		fresh: func() client.Object { return &corev1.PersistentVolumeClaim{} },
		encode: func(o client.Object) ([]byte, error) {
			return o.(*corev1.PersistentVolumeClaim).Marshal()
		},
		decode: func(b []byte, o client.Object) error {
			return o.(*corev1.PersistentVolumeClaim).Unmarshal(b)
		},
		quiet: func(o client.Object) bool {
			return isQuietClaim(o.(*corev1.PersistentVolumeClaim))
		},
		note: func(o client.Object, p *packed) {
			p.uid = types.UID(strings.Clone(string(o.GetUID())))
		},
	}
	records = &codec{
		fresh:  func() client.Object { return &v1alpha1.Volume{} },
		encode: func(o client.Object) ([]byte, error) { return json.Marshal(o) },
		decode: func(b []byte, o client.Object) error { return json.Unmarshal(b, o) },
		quiet:  func(o client.Object) bool { return isQuietVolume(o.(*v1alpha1.Volume)) },
		note: func(o client.Object, p *packed) {
			p.volume, p.node = o.GetLabels()[v1alpha1.LabelPVName],
				o.(*v1alpha1.Volume).Spec.NodeName
		},
	}
	return volumes, claims, records
}

// isQuietPV reports whether nothing is to be done about a PersistentVolume as
// it is: it is bound, and has the library's finalizer if it is to have it.
func isQuietPV(pv *corev1.PersistentVolume) bool {
	if pv.DeletionTimestamp != nil {
		return false
	}
	if pv.Status.Phase != corev1.VolumeBound || len(leadsElsewhere(pv)) > 0 ||
		pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != "" {
		return false
	}

	wantsFinalizer := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	return pv.Annotations[annProvisionedBy] != v1alpha1.LocalProvisioner ||
		slices.Contains(pv.Finalizers, finalizerOfLibrary) == wantsFinalizer
}

// finalizerOfLibrary is what external-provisioner keeps PersistentVolumes by.
const finalizerOfLibrary = "external-provisioner.volume.kubernetes.io/finalizer"

// isQuietClaim reports whether a claim is bound, and has the size it asks for
// and no wish that cannot be granted.
func isQuietClaim(claim *corev1.PersistentVolumeClaim) bool {
	if claim.DeletionTimestamp != nil || claim.Spec.VolumeName == "" ||
		claim.Status.Phase != corev1.ClaimBound {
		return false
	}
	if name := claim.Spec.VolumeAttributesClassName; name != nil && *name != "" {
		return false
	}

	want := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	have := claim.Status.Capacity[corev1.ResourceStorage]
	return want.Cmp(have) <= 0 && !expanding(claim)
}

// isQuietVolume reports whether a volume is what it is to be, in use or ready
// to be.
func isQuietVolume(v *v1alpha1.Volume) bool {
	return v.DeletionTimestamp == nil && v.Spec.Published &&
		v.Spec.DesiredState == v1alpha1.DesiredPresent &&
		v.Status.Phase == v1alpha1.VolumeReady &&
		isReady(v) &&
		v.Labels[v1alpha1.LabelOrphaned] == "" &&
		!inTrouble(v)
}

// transform is what the cache calls for each object: it drops managed fields,
// and packs a quiet object. It may be given what it returned.
func (c *codec) transform(obj any) (any, error) {
	o, ok := obj.(client.Object)
	if !ok {
		return obj, nil // a tombstone
	}
	if _, done := o.(*packed); done {
		return obj, nil
	}

	o.SetManagedFields(nil)
	if !c.quiet(o) {
		return o, nil
	}

	plain, err := c.encode(o)
	if err != nil {
		return o, nil // it is of use as it is
	}

	compressor := c.ready.Load()
	if compressor == nil {
		return o, c.learn(plain)
	}

	p := &packed{codec: c}
	c.note(o, p)
	p.namespace, p.name, p.version = o.GetNamespace(), o.GetName(), strings.Clone(
		o.GetResourceVersion(),
	)
	p.share()
	p.data = slices.Clone(compressor.encoder.EncodeAll(plain, nil))
	return p, nil
}

// share lets strings that repeat lie in memory once.
func (p *packed) share() {
	p.namespace, p.node = intern(p.namespace), intern(p.node)
	switch {
	case strings.HasPrefix(p.volume, p.name):
		// Of a PersistentVolume: its name is the beginning of the id.
		p.volume = strings.Clone(p.volume)
		p.name = p.volume[:len(p.name)]
	default:
		p.name = strings.Clone(p.name)
		if strings.HasPrefix(p.name, p.volume) {
			p.volume = p.name[:len(p.volume)]
		} else {
			p.volume = strings.Clone(p.volume)
		}
	}
}

// learn takes an object as a sample.
func (c *codec) learn(plain []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.samples = append(c.samples,
		plain); len(c.samples) < samplesWanted || c.ready.Load() != nil {
		return nil
	}

	dictionary := slices.Concat(c.samples...)
	dictionary = dictionary[max(len(dictionary)-samplesSize, 0):]
	encoder, err := zstd.NewWriter(
		nil,
		zstd.WithEncoderDictRaw(1, dictionary),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(
			zstd.SpeedFastest,
		),
		zstd.WithEncoderCRC(false),
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(64<<10),
	)
	if err != nil {
		return fmt.Errorf("pack cached objects: %w", err)
	}

	decoder, err := zstd.NewReader(
		nil,
		zstd.WithDecoderDictRaw(1, dictionary),
		zstd.WithDecoderConcurrency(4),
		zstd.WithDecoderLowmem(true),
		zstd.IgnoreChecksum(true),
	)
	if err != nil {
		return fmt.Errorf("unpack cached objects: %w", err)
	}

	c.samples = nil
	c.ready.Store(&compressor{encoder, decoder})
	return nil
}

// whole unpacks. What was packed by this process can be unpacked by it.
func (p *packed) whole() client.Object {
	plain, err := p.codec.ready.Load().decoder.DecodeAll(p.data, nil)
	o := p.codec.fresh()
	if err == nil {
		err = p.codec.decode(plain, o)
	}
	if err != nil {
		panic(fmt.Sprintf("memory is damaged: unpacking %T %s/%s: %v", o, p.namespace, p.name, err))
	}

	return o
}

// whole returns an object of the cache as what it is; ok is false for something
// else. A packed one is unpacked: the result is the caller's, but one that was
// not is shared.
func whole[T client.Object](obj any) (o T, ok bool) {
	if tombstone, is := obj.(cache.DeletedFinalStateUnknown); is {
		obj = tombstone.Obj
	}
	if p, is := obj.(*packed); is {
		obj = p.whole()
	}

	o, ok = obj.(T)
	return o, ok
}

// isPacked reports whether an object lies packed in the cache, and so is quiet.
func isPacked(obj any) bool {
	_, is := obj.(*packed)
	return is
}

// DeepCopyObject returns the whole object.
func (p *packed) DeepCopyObject() runtime.Object { return p.whole() }

// GetObjectKind says nothing, as it does for what comes out of an informer.
func (p *packed) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// What is asked for often is at hand.
func (p *packed) GetNamespace() string       { return p.namespace }
func (p *packed) GetName() string            { return p.name }
func (p *packed) GetResourceVersion() string { return p.version }
func (p *packed) GetUID() types.UID {
	if p.uid != "" {
		return p.uid
	}
	return p.whole().GetUID()
}

// The rest is unpacked.
func (p *packed) GetGenerateName() string            { return p.whole().GetGenerateName() }
func (p *packed) GetGeneration() int64               { return p.whole().GetGeneration() }
func (p *packed) GetSelfLink() string                { return p.whole().GetSelfLink() }
func (p *packed) GetCreationTimestamp() metav1.Time  { return p.whole().GetCreationTimestamp() }
func (p *packed) GetDeletionTimestamp() *metav1.Time { return p.whole().GetDeletionTimestamp() }
func (p *packed) GetDeletionGracePeriodSeconds() *int64 {
	return p.whole().GetDeletionGracePeriodSeconds()
}
func (p *packed) GetLabels() map[string]string      { return p.whole().GetLabels() }
func (p *packed) GetAnnotations() map[string]string { return p.whole().GetAnnotations() }
func (p *packed) GetFinalizers() []string           { return p.whole().GetFinalizers() }

func (p *packed) GetOwnerReferences() []metav1.OwnerReference {
	return p.whole().GetOwnerReferences()
}
func (p *packed) GetManagedFields() []metav1.ManagedFieldsEntry {
	return p.whole().GetManagedFields()
}

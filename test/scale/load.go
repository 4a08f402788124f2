package scale

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
)

// The names of what is copied. They occur nowhere else in an object, and
// nothing else is put in their place.
const (
	templateNode      = "template-node"
	templateClaim     = "template-claim"
	templateNamespace = "template-namespace"
	systemNamespace   = "quarry-system"
	// loadNamespaces is how many namespaces the claims are spread over.
	loadNamespaces = 20
)

// loader fills etcd with copies of objects that were made the usual way, so
// that every copy is what the API server would have written: only names, UIDs
// and ages differ. Written through the API server, a hundred thousand volumes
// would take most of an hour; nothing that is measured depends on how they came
// to be there.
type loader struct {
	etcd   *clientv3.Client
	pv     string // the name of the template's PersistentVolume
	record string // and of its Volume
	uid    string // of the template's claim
}

// template is an object as etcd has it.
type template struct {
	key  string
	text string // JSON
	kind *kuberuntime.TypeMeta
	uid  string
	made string // when it was made, as it is written there
}

// protobufMagic begins what the API server stores of its own kinds.
var protobufMagic = []byte("k8s\x00")

func (l *loader) read(ctx context.Context, key string) (*template, error) {
	answer, err := l.etcd.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read %s from etcd: %w", key, err)
	}
	if len(answer.Kvs) != 1 {
		return nil, fmt.Errorf("read %s from etcd: it is not there", key)
	}
	value := answer.Kvs[0].Value
	t := &template{key: key, text: string(value)}
	if bytes.HasPrefix(value, protobufMagic) {
		object, kind, err := clientscheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("decode %s: %w", key, err)
		}
		text, err := json.Marshal(object)
		if err != nil {
			return nil, fmt.Errorf("decode %s: %w", key, err)
		}
		t.text = string(text)
		t.kind = &kuberuntime.TypeMeta{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind}
	}
	var meta struct {
		Metadata struct{ UID, CreationTimestamp string }
	}
	if err := json.Unmarshal([]byte(t.text), &meta); err != nil {
		return nil, fmt.Errorf("decode %s: %w", key, err)
	}
	t.uid, t.made = meta.Metadata.UID, meta.Metadata.CreationTimestamp
	return t, nil
}

// age is how old the copies are: a cluster's volumes were not all made a minute
// ago, when controllers still look after them.
const age = 24 * time.Hour

// copy returns the object, and its key, with other names: old and new in turns.
func (t *template) copy(names ...string) (key string, value []byte, err error) {
	names = append(names, t.uid, uuid.NewString(), t.made, time.Now().Add(-age).UTC().Format(time.RFC3339))
	replacer := strings.NewReplacer(names...)
	key, text := replacer.Replace(t.key), replacer.Replace(t.text)
	if t.kind == nil {
		return key, []byte(text), nil
	}
	object, err := clientscheme.Scheme.New(kuberuntimeKind(t.kind))
	if err != nil {
		return "", nil, err
	}
	if err := json.Unmarshal([]byte(text), object); err != nil {
		return "", nil, fmt.Errorf("copy %s: %w", t.key, err)
	}
	object.GetObjectKind().SetGroupVersionKind(kuberuntimeKind(t.kind))
	var buffer bytes.Buffer
	if err := protobuf.NewSerializer(clientscheme.Scheme, clientscheme.Scheme).Encode(object, &buffer); err != nil {
		return "", nil, fmt.Errorf("copy %s: %w", t.key, err)
	}
	return key, buffer.Bytes(), nil
}

// load writes nodes with their agents' pods, and volumes with their claims and
// PersistentVolumes.
func (l *loader) load(ctx context.Context, nodes, volumes int) error {
	node, err := l.read(ctx, "/registry/minions/"+templateNode)
	if err != nil {
		return err
	}
	pod, err := l.read(ctx, "/registry/pods/"+systemNamespace+"/agent-"+templateNode)
	if err != nil {
		return err
	}
	err = l.write(ctx, nodes, func(i int) ([]*template, []string) {
		return []*template{node, pod}, []string{templateNode, nodeName(i)}
	})
	if err != nil {
		return err
	}
	claim, err := l.read(ctx, "/registry/persistentvolumeclaims/"+templateNamespace+"/"+templateClaim)
	if err != nil {
		return err
	}
	pv, err := l.read(ctx, "/registry/persistentvolumes/"+l.pv)
	if err != nil {
		return err
	}
	record, err := l.read(ctx, "/registry/quarry.storage/volumes/"+l.record)
	if err != nil {
		return err
	}
	l.uid = claim.uid
	// Volumes of one node lie apart in time and in namespaces, as they would.
	return l.write(ctx, volumes, func(i int) ([]*template, []string) {
		return []*template{claim, pv, record}, []string{
			templateNode, nodeName(i % nodes), templateClaim, fmt.Sprintf("data-%06d", i),
			templateNamespace, fmt.Sprintf("load-%d", i%loadNamespaces), l.uid, uuid.NewString(),
		}
	})
}

// write copies n times what of gives, in transactions of many.
func (l *loader) write(ctx context.Context, n int, of func(i int) ([]*template, []string)) error {
	const batch = 100
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.NumCPU())
	for from := 0; from < n; from += batch {
		group.Go(func() error {
			var puts []clientv3.Op
			for i := from; i < min(from+batch, n); i++ {
				templates, names := of(i)
				for _, t := range templates {
					key, value, err := t.copy(names...)
					if err != nil {
						return err
					}
					puts = append(puts, clientv3.OpPut(key, string(value)))
				}
			}
			if _, err := l.etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
				return fmt.Errorf("write copies to etcd: %w", err)
			}
			return nil
		})
	}
	return group.Wait()
}

func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

package admin

import (
	"context"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// watched calls on with each object of a kind that is there, is made or
// changes, and with gone once it is deleted, until ctx ends. It follows a
// watch, and goes on after one that was cut off with what changed meanwhile.
// The error is that of the first look; what comes later is tried again.
func watched(ctx context.Context, kube client.WithWatch, object client.Object,
	list client.ObjectList, on func(o client.Object, gone bool)) error {
	if err := kube.List(ctx, list.DeepCopyObject().(client.ObjectList),
		client.Limit(1)); err != nil {
		return fmt.Errorf("watch: %w", err)
	}

	raw := func(o metav1.ListOptions) *client.ListOptions { return &client.ListOptions{Raw: &o} }
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context,
			o metav1.ListOptions) (runtime.Object, error) {
			all := list.DeepCopyObject().(client.ObjectList)
			return all, kube.List(ctx, all, raw(o))
		},
		WatchFuncWithContext: func(ctx context.Context,
			o metav1.ListOptions) (watch.Interface, error) {
			return kube.Watch(ctx, list.DeepCopyObject().(client.ObjectList), raw(o))
		},
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source,
		ObjectType:    object,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { tell(o, false, on) },
			UpdateFunc: func(_, o any) { tell(o, false, on) },
			DeleteFunc: func(o any) { tell(o, true, on) },
		},
	})
	informer.RunWithContext(ctx)

	return nil
}

// tell calls on with what an informer hands out.
func tell(o any, gone bool, on func(o client.Object, gone bool)) {
	if last, is := o.(cache.DeletedFinalStateUnknown); is {
		o = last.Obj
	}
	if object, is := o.(client.Object); is {
		on(object, gone)
	}
}

// columns prints rows one after the other, below the head of a table, in
// columns that are as wide as what was printed so far.
type columns struct {
	w     io.Writer
	width []int
}

func (c *columns) print(cells []string) {
	var line strings.Builder
	for i, cell := range cells {
		if cell = oneLine(cell); cell == "" {
			cell = "-"
		}

		if i == len(c.width) {
			c.width = append(c.width, 0)
		}

		c.width[i] = max(c.width[i], utf8.RuneCountInString(cell))
		line.WriteString(cell)
		if i < len(cells)-1 {
			line.WriteString(strings.Repeat(" ", c.width[i]-utf8.RuneCountInString(cell)+2))
		}
	}

	fmt.Fprintln(c.w, line.String())
}

// changesOf remembers the last row of each object, and says whether a new one
// says anything new.
type changesOf map[string]string

func (c changesOf) isNew(name string, cells []string) bool {
	text := strings.Join(cells, "\t")
	if c[name] == text {
		return false
	}
	c[name] = text
	return true
}

// nameOf is how -o name names one of our objects, so that kubectl takes it.
func nameOf(kind, name string) string {
	return strings.ToLower(kind) + ".quarry.storage/" + name
}

package admin

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

// volumesCommand is `volumes`, and its flags.
type volumesCommand struct {
	to      cluster
	o       show.Format
	timeout time.Duration
	sort    string
	watch   bool
	usage   bool
	which   volumeFilter

	kube client.WithWatch
	// podsKnown is set where pods are read at all: what of them is shown, and
	// the whole of a big cluster's is much.
	podsKnown bool
}

// volumeFilter says which volumes are meant; what is empty says nothing.
type volumeFilter struct {
	node, namespace, pool, class, pod string
	wrong                             bool
}

func newVolumes() *cobra.Command {
	c := &volumesCommand{}
	cmd := &cobra.Command{
		Use: "volumes", Aliases: []string{"volume", "vol"},
		Short: "List volumes: where they are, whose, how full, and whether all is well with them",
		Long: `List volumes: on which node and pool they are, for which claim they were made,
how large they are, how full, and whether all is well with them. Nothing is
changed.

STATE is Ready, or one word for what else there is;
` + "`kubectl quarry describe volume NAME`" + ` says the rest. How full a volume is comes from
the kubelet of its node, which knows it of filesystems that a pod has mounted;
elsewhere there is a dash. That needs the right to get nodes/proxy.

With --watch the list is followed by a line for each volume that is made,
changes or goes, as it happens; how full volumes are is read once.`,
		Example: `  kubectl quarry volumes
  # What is wrong:
  kubectl quarry volumes --wrong
  # The fullest ones of a namespace, with their pods and where they are on disk:
  kubectl quarry volumes -n shop --sort used -o wide
  # Of a pod:
  kubectl quarry volumes --pod shop/db-0
  # See what happens on a node:
  kubectl quarry volumes --node node1 --watch`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	c.to.flags(cmd.Flags())
	c.o.Flags(cmd.Flags(), show.Wide, show.AsJSON, show.YAML, show.Name)
	c.which.flags(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&c.sort, "sort", "node", "by "+strings.Join(diagnose.VolumeSortKeys, ", "))
	f.BoolVarP(&c.watch, "watch", "w", false, "go on and say what changes")
	f.BoolVar(&c.usage, "usage", true, "ask the nodes' kubelets how full volumes are")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long to wait for the API server")
	completeFlag(cmd, "sort", diagnose.VolumeSortKeys)

	return cmd
}

func (f *volumeFilter) flags(flags *pflag.FlagSet) {
	flags.StringVar(&f.node, "node", "", "only volumes of this node")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "only volumes of this namespace's claims")
	flags.StringVar(&f.pool, "pool", "", "only volumes of pools of this name, or of the "+
		"pool NODE.POOL")
	flags.StringVar(&f.class, "class", "", "only volumes of this StorageClass")
	flags.StringVar(&f.pod, "pod", "", "only volumes of this pod: NAME with --namespace, or "+
		"NAMESPACE/NAME")
	flags.BoolVar(&f.wrong, "wrong", false, "only volumes with which something is wrong")
}

// complete takes a pod's namespace from its name.
func (f *volumeFilter) complete() error {
	if f.pod == "" {
		return nil
	}

	namespace, name, qualified := strings.Cut(f.pod, "/")
	switch {
	case !qualified && f.namespace == "":
		return fmt.Errorf("--pod %s: say its namespace too, by --namespace or as NAMESPACE/NAME",
			f.pod)
	case !qualified:
		return nil
	case f.namespace != "" && f.namespace != namespace:
		return fmt.Errorf("--pod %s is not in --namespace %s", f.pod, f.namespace)
	}

	f.namespace, f.pod = namespace, name
	return nil
}

// accepts reports whether a volume is meant.
func (f *volumeFilter) accepts(v *diagnose.Volume) bool {
	return (f.node == "" || v.Node == f.node) &&
		(f.namespace == "" || v.Namespace == f.namespace) &&
		(f.pool == "" || v.Pool == f.pool || v1alpha1.PoolObjectName(v.Node, v.Pool) == f.pool) &&
		(f.class == "" || v.StorageClass == f.class) &&
		(f.pod == "" || slices.Contains(v.Pods, f.pod)) &&
		(!f.wrong || !v.Healthy)
}

func (c *volumesCommand) run(cmd *cobra.Command) (err error) {
	if err := c.o.Check(); err != nil {
		return err
	}
	if !slices.Contains(diagnose.VolumeSortKeys, c.sort) {
		return fmt.Errorf("--sort %q is not one of %s", c.sort,
			strings.Join(diagnose.VolumeSortKeys, ", "))
	}
	if err := c.which.complete(); err != nil {
		return err
	}
	if c.kube, err = c.to.connect(); err != nil {
		return err
	}

	c.podsKnown = c.which.pod != "" || !c.o.Is("") && !c.o.Is(show.Name)

	all, err := c.list(cmd.Context())
	if err != nil {
		return noRight(err)
	}
	if c.usage && !c.o.Is(show.Name) {
		c.readUsage(cmd, all)
	}

	diagnose.SortVolumes(all, c.sort)
	if c.watch {
		return c.follow(cmd, all)
	}

	return c.print(cmd, all)
}

// list reads the volumes that are meant.
func (c *volumesCommand) list(ctx context.Context) ([]diagnose.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	var (
		pvs     corev1.PersistentVolumeList
		pods    corev1.PodList
		volumes v1alpha1.VolumeList
		options []client.ListOption
	)
	if err := c.kube.List(ctx, &pvs); err != nil {
		return nil, fmt.Errorf("list PersistentVolumes: %w", err)
	}
	if c.podsKnown {
		if err := c.kube.List(ctx, &pods, client.InNamespace(c.which.namespace)); err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
	}

	if c.which.node != "" {
		options = append(options, client.MatchingFields{"spec.nodeName": c.which.node})
	}

	if err := c.kube.List(ctx, &volumes, options...); err != nil {
		return nil, fmt.Errorf("list Volumes: %w", err)
	}

	out := []diagnose.Volume{}
	links, now := diagnose.NewLinks(pvs.Items, pods.Items), time.Now()
	for i := range volumes.Items {
		if v := diagnose.VolumeOf(&volumes.Items[i], links, now); c.which.accepts(&v) {
			out = append(out, v)
		}
	}

	return out, nil
}

// readUsage puts into volumes how full they are. What could not be read is
// said, and keeps nothing back.
func (c *volumesCommand) readUsage(cmd *cobra.Command, all []diagnose.Volume) {
	core, err := corev1client.NewForConfig(c.to.config)
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "How full volumes are is not known:", err)
		return
	}

	usage, unread := diagnose.ReadUsage(cmd.Context(), core.RESTClient(), diagnose.NodesOf(all))
	for i := range all {
		all[i].Usage = usage[all[i].Namespace+"/"+all[i].Claim]
	}

	// Of a right that is missing on all nodes one line is enough.
	for n, node := range slices.Sorted(maps.Keys(unread)) {
		if n == alike {
			fmt.Fprintf(cmd.ErrOrStderr(), "... nor on %d more nodes\n", len(unread)-alike)
			break
		}

		fmt.Fprintf(cmd.ErrOrStderr(), "How full volumes on node %s are is not known "+
			"(--usage=false does not ask): %s\n",
			node, oneLine(unread[node].Error()))
	}
}

func (c *volumesCommand) print(cmd *cobra.Command, all []diagnose.Volume) error {
	w := cmd.OutOrStdout()
	if printed, err := c.o.Structured(w, all); printed || err != nil {
		return err
	}

	if c.o.Is(show.Name) {
		for i := range all {
			fmt.Fprintln(w, nameOf(diagnose.KindVolume, all[i].Name))
		}
		return nil
	}
	if len(all) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "There are no such volumes.")
		return nil
	}

	return printVolumes(w, all, c.o.Is(show.Wide), metav1.Now(), show.PaintFor(w))
}

func printVolumes(w io.Writer, all []diagnose.Volume, wide bool, now metav1.Time,
	paint show.Paint) error {
	rows := make([]row, 0, len(all))
	for i := range all {
		r := row{cells: volumeCells(&all[i], wide, now)}
		if !all[i].Healthy {
			r.colour = show.Red
		}
		rows = append(rows, r)
	}

	return colouredTable(w, paint, volumeHead(wide), rows)
}

func volumeHead(wide bool) []string {
	head := []string{"VOLUME", "NODE", "POOL", "CLAIM", "SIZE", "USED", "USE%", "INODES%", "STATE"}
	if wide {
		head = append(head, "CLASS", "BACKEND", "FS", "PODS", "AGE", "PATH")
	}
	return head
}

// volumeCells is a volume as a row. What kubelet does not know is left empty.
func volumeCells(v *diagnose.Volume, wide bool, now metav1.Time) []string {
	claim, used, share, inodes := "", "", "", ""
	if v.Claim != "" {
		claim = v.Namespace + "/" + v.Claim
	}

	if u := v.Usage; u != nil {
		used, share = diagnose.Size(u.UsedBytes), percent(u.UsedBytes, u.CapacityBytes)
		inodes = percent(u.UsedInodes, u.Inodes)
	}

	cells := []string{v.Name, v.Node, v.Pool, claim, diagnose.Size(v.SizeBytes), used,
		share, inodes,
		v.State}
	if wide {
		cells = append(cells, v.StorageClass, string(v.Backend), v.FSType,
			strings.Join(v.Pods, ","),
			age(now, v.Created), v.Path)
	}

	return cells
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

// follow prints the volumes that are there, and then each that changes in what
// is shown of it.
func (c *volumesCommand) follow(cmd *cobra.Command, all []diagnose.Volume) error {
	usage := map[string]*diagnose.Usage{}
	said, table := changesOf{}, columns{w: cmd.OutOrStdout()}
	wide := c.o.Is(show.Wide)
	if c.o.Is("") || wide {
		table.print(volumeHead(wide))
	}

	say := func(v *diagnose.Volume) {
		cells := volumeCells(v, true, v.Created) // an age is no change
		if !said.isNew(v.Name, cells) {
			return
		}

		printed, err := c.o.Structured(table.w, v)
		switch {
		case printed || err != nil:
		case c.o.Is(show.Name):
			fmt.Fprintln(table.w, nameOf(diagnose.KindVolume, v.Name))
		default:
			table.print(volumeCells(v, wide, metav1.Now()))
		}
	}
	for i := range all {
		usage[all[i].Name] = all[i].Usage
		say(&all[i])
	}

	return watched(cmd.Context(), c.kube, &v1alpha1.Volume{}, &v1alpha1.VolumeList{},
		func(o client.Object, gone bool) {
			object, is := o.(*v1alpha1.Volume)
			if !is {
				return
			}

			v := c.now(cmd.Context(), object)
			v.Usage = usage[v.Name]
			if gone {
				v.State, v.Healthy, v.Message = "Gone", true, ""
			}

			if c.which.accepts(&v) {
				say(&v)
			} else {
				delete(said, v.Name) // so that it is said if it is meant again
			}

			if gone {
				delete(said, v.Name)
			}
		})
}

// now is a volume with what leads to it at this moment. What cannot be read is
// left out; the next change says it.
func (c *volumesCommand) now(ctx context.Context, object *v1alpha1.Volume) diagnose.Volume {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	var (
		pvs  []corev1.PersistentVolume
		pods corev1.PodList
		pv   corev1.PersistentVolume
	)
	if name := object.Labels[v1alpha1.LabelPVName]; name != "" {
		if err := c.kube.Get(ctx, client.ObjectKey{Name: name}, &pv); err == nil {
			pvs = append(pvs, pv)
		}
	}

	if ref := object.Spec.Claim; ref != nil && c.podsKnown {
		_ = c.kube.List(ctx, &pods, client.InNamespace(ref.Namespace))
	}

	return diagnose.VolumeOf(object, diagnose.NewLinks(pvs, pods.Items), time.Now())
}

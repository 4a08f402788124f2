package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// adopting are the flags of adopt.
type adopting struct {
	to          cluster
	in          agents
	adoption    rescue.Adoption
	kind, size  string
	enforcement string
	mode, claim string
	policy      string
	dryRun, yes bool
	timeout     time.Duration
}

func newAdopt() *cobra.Command {
	var o adopting
	cmd := &cobra.Command{
		Use: "adopt", Short: "Make a volume of a directory or an image that is on a node already",
		Long: `Make a volume of a directory or an image that is on a node already, below the
directory of one of its pools.

What happens on the node: the directory is renamed into the pool as a volume,
and a symbolic link is left at the old path, so that whatever names that path
goes on working, running pods included. Its size is enforced from then on (or
not, with --enforcement none). The data is not copied, and at no time without a
path that leads to it.

With --pv a PersistentVolume that was made by hand (kind local) is handed over:
node, path, size, class, claim and policy are its own, and it stays as it is,
bound or not. What you will see: it gets annotations, and from then on Quarry
handles its deletion and its growth. Mind its reclaim policy: with Delete,
deleting the claim deletes the data, which Kubernetes alone could not do.

Without --pv a new PersistentVolume is made, for the claim given by --claim or
for any.

--dry-run says what is found on the node, and prints the manifest that does the
same with kubectl apply.`,
		Example: `  # EaseMesh's hand-made PersistentVolume at /volumes/easemesh-storage:
  kubectl quarry adopt --pv easemesh-storage-pv-1 --dry-run
  kubectl quarry adopt --pv easemesh-storage-pv-1
  # A directory, for a claim that does not exist yet:
  kubectl quarry adopt --node node1 --path /volumes/old-data --size 10Gi \
    --class quarry --claim shop/data
  # An image file, as a block device:
  kubectl quarry adopt --node node1 --path /volumes/disk.img --type File --volume-mode Block`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.to.flags(cmd.Flags())
	o.in.flags(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&o.adoption.PV, "pv", "", "a PersistentVolume made by hand that is handed over")
	f.StringVar(&o.adoption.Node, "node", "", "the node that has the data")
	f.StringVar(&o.adoption.Path, "path", "", "where the data is on the node")
	f.StringVar(&o.kind, "type", string(v1alpha1.AdoptDirectory),
		"what is there, as hostPath volumes say it: Directory, DirectoryOrCreate, File "+
			"or FileOrCreate")

	f.StringVar(&o.adoption.Name, "name", "",
		"the name of the PersistentVolume that is made (default: after the node and the path)")
	f.StringVar(&o.adoption.Class, "class", "", "its StorageClass")
	f.StringVar(&o.size, "size", "",
		"what the volume is limited to (default: the PersistentVolume's or the image's size)")

	f.StringVar(&o.enforcement, "enforcement", string(v1alpha1.EnforcementQuota),
		"quota: the size is enforced; none: it is not")

	f.StringVar(&o.mode, "volume-mode", string(corev1.PersistentVolumeFilesystem),
		"Filesystem or Block")

	f.StringVar(&o.claim, "claim", "",
		"NAMESPACE/NAME of the claim that it is kept for (default: any)")

	f.StringVar(&o.policy, "reclaim-policy", string(corev1.PersistentVolumeReclaimRetain),
		"Retain or Delete")
	f.BoolVar(&o.dryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&o.yes, "yes", false, "do not ask")
	f.DurationVar(&o.timeout, "timeout", rescue.DefaultPatience,
		"how long to wait for the node's agent, and for the claim to be bound")

	return cmd
}

func (o *adopting) run(cmd *cobra.Command) error {
	if err := o.parse(cmd); err != nil {
		return err
	}

	r, err := o.to.rescuer()
	if err != nil {
		return err
	}

	v, err := r.Prepare(cmd.Context(), o.adoption)
	if err != nil {
		return err
	}

	begun, err := r.Begun(cmd.Context(), v)
	if err != nil {
		return err
	}

	if begun != nil && begun.Status.Phase != v1alpha1.VolumeRefused {
		fmt.Fprintf(cmd.OutOrStdout(), "Volume %s was adopted from %s already (%s).\n", v.Name,
			v.Spec.Adopt.Path, begun.Status.Phase)
		if o.dryRun {
			return nil
		}

		r.Patience = o.timeout
		sayTo(cmd, r)
		return r.Adopt(cmd.Context(), v)
	}

	report, err := o.check(cmd.Context(), r, v)
	if err != nil {
		return err
	}

	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "Found on node %s:\n  ", v.Spec.NodeName)
	printReport(out, report)

	switch {
	case len(report.Problems) > 0:
		return fmt.Errorf("%s cannot be adopted as it is; nothing was done", v.Spec.Adopt.Path)
	case v.Spec.Capacity.IsZero() && report.Found == store.FoundImage:
		v.Spec.Capacity = *resource.NewQuantity(report.SizeBytes, resource.BinarySI)
	case v.Spec.Capacity.IsZero():
		return errors.New("how large the volume may get is not known: say --size")
	}

	o.announce(out, v, report)
	if o.dryRun {
		var node corev1.Node
		if err := r.Client.Get(cmd.Context(), client.ObjectKey{Name: v.Spec.NodeName},
			&node); err != nil {
			return err
		}

		v.Status.Pool = report.Pool
		return o.manifest(out, v, &node)
	}

	if err := confirm(cmd, o.yes, "\nGo on?"); err != nil {
		return err
	}

	r.Patience = o.timeout
	sayTo(cmd, r)
	return r.Adopt(cmd.Context(), v)
}

// parse reads the flags that are more than text.
func (o *adopting) parse(cmd *cobra.Command) (err error) {
	a := &o.adoption
	if a.PV != "" {
		for _, own := range []string{"name", "class", "volume-mode", "claim", "reclaim-policy"} {
			if cmd.Flags().Changed(own) {
				return fmt.Errorf("--%s is the PersistentVolume's own (--pv)", own)
			}
		}
	}

	a.Type, a.Enforcement = v1alpha1.AdoptionType(o.kind), v1alpha1.Enforcement(o.enforcement)
	a.VolumeMode, a.ReclaimPolicy = corev1.PersistentVolumeMode(o.mode),
		corev1.PersistentVolumeReclaimPolicy(o.policy)
	if a.ReclaimPolicy != corev1.PersistentVolumeReclaimRetain &&
		a.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		return fmt.Errorf("--reclaim-policy %q is neither Retain nor Delete", o.policy)
	}
	if o.size != "" {
		if a.Size, err = resource.ParseQuantity(o.size); err != nil {
			return fmt.Errorf("--size: %w", err)
		}
	}

	if o.claim != "" {
		a.Claim, err = parseClaim(o.claim)
	}

	return err
}

// check asks the agent of the node what is at the path.
func (o *adopting) check(ctx context.Context, r *rescue.Rescuer,
	v *v1alpha1.Volume) (*store.AdoptionReport, error) {
	pods, err := o.in.pods(ctx, r.Client)
	if err != nil {
		return nil, err
	}

	pod := pods[v.Spec.NodeName]
	if pod == nil {
		return nil, fmt.Errorf("no agent runs on node %s", v.Spec.NodeName)
	}

	a := v.Spec.Adopt
	out, err := run(ctx, o.to.config, pod, "adopt", "--check", "-o=json", "--path="+a.Path,
		"--type="+string(a.Type),
		"--volume-mode="+string(v.Spec.VolumeMode), "--enforcement="+string(v.Spec.Enforcement))
	if err != nil {
		return nil, err
	}

	report := &store.AdoptionReport{}
	if err := json.Unmarshal(out, report); err != nil {
		return nil, fmt.Errorf("the agent of node %s answered with something else "+
			"than a report: %w", v.Spec.NodeName, err)
	}

	return report, nil
}

// announce says what will be seen.
func (o *adopting) announce(w io.Writer, v *v1alpha1.Volume, report *store.AdoptionReport) {
	s, pv := &v.Spec, v.Labels[v1alpha1.LabelPVName]
	fmt.Fprintln(w, "What will be seen:")
	if report.Found != store.FoundNothing {
		fmt.Fprintf(w, "  on the node: %s becomes a link to %s; running pods notice nothing\n",
			s.Adopt.Path, strings.ReplaceAll(report.Link, "<id>", v.Name))
	}

	if s.Enforcement == v1alpha1.EnforcementNone {
		fmt.Fprintf(w, "  its size: %s, which nothing enforces\n", s.Capacity.String())
	} else {
		fmt.Fprintf(w, "  its size: %s, enforced from then on\n", s.Capacity.String())
	}

	claim := "any claim"
	if s.Claim != nil {
		claim = "claim " + s.Claim.Namespace + "/" + s.Claim.Name
	}

	if o.adoption.PV != "" {
		fmt.Fprintf(w, "  PersistentVolume %s (%s): stays as it is, and is deleted and grown by "+
			"Quarry from then on\n", pv, claim)
	} else {
		fmt.Fprintf(w, "  PersistentVolume %s: is made for %s\n", pv, claim)
	}

	if s.ReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		fmt.Fprintln(w, "  when the claim is deleted: the data is deleted (reclaim policy Delete)")
	} else {
		fmt.Fprintln(w, "  when the claim is deleted: the data stays (reclaim policy Retain)")
	}
}

// manifest prints what `kubectl apply` would need.
func (o *adopting) manifest(w io.Writer, v *v1alpha1.Volume, node *corev1.Node) error {
	// Through JSON, so that the empty status and time stamps are left out.
	raw, err := json.Marshal(rescue.Manifest(v))
	if err != nil {
		return err
	}

	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return err
	}

	delete(object, "status")
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}

	text, err := yaml.Marshal(object)
	if err != nil {
		return err
	}

	fmt.Fprintf(w, "\nNothing was changed. This makes the volume, applied with kubectl:\n---\n%s",
		text)
	fmt.Fprintln(w, "---")
	if o.adoption.PV == "" {
		fmt.Fprintln(w, "Once it is Ready, the same command without --dry-run makes its "+
			"PersistentVolume.")
		return nil
	}

	fmt.Fprintln(w, "Once it is Ready, the same command without --dry-run hands the "+
		"PersistentVolume over, as this does:")
	fmt.Fprintf(w, "kubectl annotate pv %s", o.adoption.PV)
	annotations := rescue.Annotations(v, node)
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		fmt.Fprintf(w, " \\\n  %s='%s'", key, annotations[key])
	}

	fmt.Fprintln(w)
	return nil
}

package admin

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

// telling reads one story.
type telling func(ctx context.Context, kube client.WithWatch, s diagnose.Selectors,
	name string) (*diagnose.Story, error)

func newDescribe() *cobra.Command {
	return parent("describe", "The whole story of a volume, a pool or a claim, in one place",
		`The whole story of a volume, a pool or a claim, in one place: what is wrong with
it and what to do, the claim, the Volume object and its PersistentVolume, the
pods, where it is on disk, conditions and events. Nothing is changed.`,
		newDescribeVolume(), newDescribePool(), newDescribeClaim())
}

func newDescribeVolume() *cobra.Command {
	return describing(&cobra.Command{
		Use: "volume NAME", Short: "The whole story of a volume",
		Long: `The whole story of a volume: what leads to it, who uses it, where it is on disk,
what is wrong with it and what happened. NAME is that of the Volume object, as
` + "`kubectl quarry volumes`" + ` lists it.`,
		Example: `  kubectl quarry describe volume pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1`,
	}, nil, func(ctx context.Context, kube client.WithWatch, s diagnose.Selectors,
		name string) (*diagnose.Story, error) {
		story, err := diagnose.TellVolume(ctx, kube, s, name, time.Now())
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf(
				"there is no Volume %s; `kubectl quarry recover` finds volumes on disk that "+
					"have none", name)
		}
		return story, err
	}, &v1alpha1.VolumeList{})
}

func newDescribePool() *cobra.Command {
	return describing(&cobra.Command{
		Use: "pool NODE.POOL", Short: "The whole story of a pool",
		Long: `The whole story of a pool: its disk, its room, who looks after it, its volumes,
what is wrong with it and what happened. NODE.POOL is as ` + "`kubectl quarry pools`" + `
lists it.`,
		Example: `  kubectl quarry describe pool node1.default`,
	}, nil, func(ctx context.Context, kube client.WithWatch, s diagnose.Selectors,
		name string) (*diagnose.Story, error) {
		return diagnose.TellPool(ctx, kube, s, name, time.Now())
	}, &v1alpha1.PoolList{})
}

func newDescribeClaim() *cobra.Command {
	var namespace string
	cmd := describing(&cobra.Command{
		Use: "claim [NAMESPACE/]NAME", Aliases: []string{"pvc"},
		Short: "The whole story of a claim",
		Long: `The whole story of a claim: why it waits if it does, its volume or the attempts
at one, the pods that use it, where its data is on disk, what is wrong and what
happened.`,
		Example: `  kubectl quarry describe claim shop/data-db-0
  kubectl quarry describe claim data-db-0 -n shop`,
	}, &namespace, func(ctx context.Context, kube client.WithWatch, s diagnose.Selectors,
		name string) (*diagnose.Story, error) {
		key := client.ObjectKey{Namespace: namespace, Name: name}
		if in, own, qualified := strings.Cut(name, "/"); qualified {
			key = client.ObjectKey{Namespace: in, Name: own}
		}
		return diagnose.TellClaim(ctx, kube, s, key, time.Now())
	}, &corev1.PersistentVolumeClaimList{})
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "",
		"the claim's namespace (default: the kubeconfig context's)")

	return cmd
}

// describing makes cmd, which says how it is used, a command that tells a
// story. namespace, if not nil, is a flag that is filled in from the
// kubeconfig. list is a list of what can be told of, for the shell.
func describing(cmd *cobra.Command, namespace *string, tell telling,
	list client.ObjectList) *cobra.Command {
	var (
		look  looking
		o     show.Format
		usage bool
	)
	cmd.Args = cobra.ExactArgs(1)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) (
		[]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return look.to.names(cmd.Context(), list), cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.Check(); err != nil {
			return err
		}

		s, err := look.selectors()
		if err != nil {
			return err
		}

		kube, err := look.to.connect()
		if err != nil {
			return err
		}
		if namespace != nil && *namespace == "" {
			if *namespace, err = look.to.namespace(); err != nil {
				return err
			}
		}

		ctx, cancel := context.WithTimeout(cmd.Context(), look.timeout)
		defer cancel()

		story, err := tell(ctx, kube, s, args[0])
		if err != nil {
			return noRight(err)
		}
		if usage {
			look.to.usage(ctx, story)
		}

		out := cmd.OutOrStdout()
		if printed, err := o.Structured(out, story); printed || err != nil {
			return err
		}

		return printStory(out, story, show.PaintFor(out))
	}
	look.flags(cmd.Flags())
	o.Flags(cmd.Flags(), show.AsJSON, show.YAML)
	cmd.Flags().BoolVar(&usage, "usage", true, "ask the node's kubelet how full the volume is")

	return cmd
}

// usage puts into a story how full its volume is. Where that cannot be known it
// is left out: the story is complete without it.
func (c *cluster) usage(ctx context.Context, s *diagnose.Story) {
	core, err := corev1client.NewForConfig(c.config)
	if err != nil || s.Claim == nil || len(s.Volumes) == 0 {
		return
	}
	found, _ := diagnose.ReadUsage(ctx, core.RESTClient(), []string{s.Volumes[0].Spec.NodeName})
	s.Usage = found[s.Claim.Namespace+"/"+s.Claim.Name]
}

// names are those of all objects of a kind, for the shell; none if they cannot
// be had soon.
func (c *cluster) names(ctx context.Context, list client.ObjectList) []string {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()

	kube, err := c.connect()
	if err != nil || kube.List(ctx, list) != nil {
		return nil
	}

	var out []string
	switch l := list.(type) {
	case *v1alpha1.VolumeList:
		for i := range l.Items {
			out = append(out, l.Items[i].Name)
		}
	case *v1alpha1.PoolList:
		for i := range l.Items {
			out = append(out, l.Items[i].Name)
		}
	case *corev1.PersistentVolumeClaimList:
		for i := range l.Items {
			out = append(out, l.Items[i].Namespace+"/"+l.Items[i].Name)
		}
	}

	return out
}

// fact is a line of a story: what it is, and what it says.
type fact struct{ what, text string }

// printStory prints a story from the top: what is wrong, what leads to the
// data, where it is, and what happened.
func printStory(out io.Writer, s *diagnose.Story, paint show.Paint) error {
	var w bytes.Buffer
	now := metav1.Time{Time: s.At}
	printTrouble(&w, s, paint)

	var facts []fact
	if s.Claim != nil {
		facts = append(facts, claimFacts(s, now)...)
	}

	if pv := s.PersistentVolume; pv != nil {
		facts = append(facts, fact{"PersistentVolume", fmt.Sprintf("%s (%s, policy %s)", pv.Name,
			cmp.Or(string(pv.Status.Phase), "not bound"), pv.Spec.PersistentVolumeReclaimPolicy)})
	}

	alone := s.Kind != diagnose.KindPool
	if alone {
		for i := range s.Volumes {
			facts = append(facts, volumeFacts(&s.Volumes[i], s, now)...)
		}
	}

	for i := range s.Pools {
		facts = append(facts, poolFacts(&s.Pools[i], s.Nodes, now)...)
	}

	for i := range s.Nodes {
		n := &s.Nodes[i]
		facts = append(facts, fact{"Node", fmt.Sprintf("%s, agent %s: %s", n.Name, n.Agent,
			cmp.Or(n.AgentPod, "none"))})
	}

	printFacts(&w, facts)

	if err := printConditions(&w, s, alone, now); err != nil {
		return err
	}
	if !alone {
		if err := printVolumesOf(&w, s, now, paint); err != nil {
			return err
		}
	}

	if err := printEvents(&w, s, now); err != nil {
		return err
	}

	_, err := w.WriteTo(out)
	return err
}

// printTrouble prints what is wrong, as status does.
func printTrouble(w io.Writer, s *diagnose.Story, paint show.Paint) {
	if waits := s.Waiting; waits != nil && !waits.Wrong {
		fmt.Fprintf(w, "It waits: %s\n\n", oneLine(waits.Message))
	}

	if len(s.Findings) == 0 {
		if s.Waiting == nil {
			fmt.Fprintf(w, "%s\n\n", paint.In(show.Green, "Nothing is wrong."))
		}
		return
	}

	findings(w, metav1.Time{Time: s.At}, s.Findings, true, paint)
	fmt.Fprintln(w)
}

func printFacts(w io.Writer, facts []fact) {
	width := 0
	for _, f := range facts {
		width = max(width, len(f.what))
	}
	for _, f := range facts {
		fmt.Fprintf(w, "%-*s  %s\n", width+1, f.what+":", cmp.Or(oneLine(f.text), "-"))
	}
}

func claimFacts(s *diagnose.Story, now metav1.Time) []fact {
	claim := s.Claim
	class := ""
	if claim.Spec.StorageClassName != nil {
		class = *claim.Spec.StorageClassName
	}

	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	facts := []fact{
		{"Claim", fmt.Sprintf("%s/%s (%s), made %s ago", claim.Namespace, claim.Name,
			claim.Status.Phase, age(now, claim.CreationTimestamp))},
		{"Asks for", strings.Join(nonEmpty(size.String(), joined(claim.Spec.AccessModes),
			"class "+classText(class, s.Class)), ", ")},
	}

	text := "none"
	var pods []string
	for i := range s.Pods {
		p := &s.Pods[i]
		pods = append(pods, fmt.Sprintf("%s (%s, node %s)", p.Name, p.Status.Phase,
			cmp.Or(p.Spec.NodeName, "not chosen yet")))
	}

	if len(pods) > 0 {
		text = strings.Join(pods, ", ")
	}

	return append(facts, fact{"Pods", text})
}

func classText(name string, class *storagev1.StorageClass) string {
	if class == nil {
		return cmp.Or(name, "none") + " (there is no such class)"
	}

	mode := storagev1.VolumeBindingImmediate
	if class.VolumeBindingMode != nil {
		mode = *class.VolumeBindingMode
	}

	text := fmt.Sprintf("%s (%s, %s", name, class.Provisioner, mode)
	for _, key := range slices.Sorted(maps.Keys(class.Parameters)) {
		text += ", " + key + "=" + class.Parameters[key]
	}

	return text + ")"
}

func joined[T ~string](words []T) string {
	var out []string
	for _, w := range words {
		out = append(out, string(w))
	}
	return strings.Join(out, "+")
}

func volumeFacts(v *v1alpha1.Volume, s *diagnose.Story, now metav1.Time) []fact {
	size := v.Spec.Capacity.String()
	if have := v.Status.Capacity; have != nil && have.Cmp(v.Spec.Capacity) != 0 {
		size = fmt.Sprintf("%s, and %s is asked for", have.String(), size)
	}

	facts := []fact{{"Volume", fmt.Sprintf("%s (%s, wanted %s), made %s ago", v.Name,
		cmp.Or(v.Status.Phase, v1alpha1.VolumePending), v.Spec.DesiredState, age(now,
			v.CreationTimestamp))}}
	if s.Claim == nil && v.Spec.Claim != nil {
		facts = append(facts,
			fact{"Made for", fmt.Sprintf("claim %s/%s, which does not exist (any more)",
				v.Spec.Claim.Namespace, v.Spec.Claim.Name)})
	}

	facts = append(facts, fact{"Size", size})
	if u := s.Usage; u != nil && &s.Volumes[0] == v {
		facts = append(facts, fact{"Used", fmt.Sprintf("%s (%s), %d files (%s)",
			diagnose.Size(u.UsedBytes),
			percent(u.UsedBytes, u.CapacityBytes), u.UsedInodes, percent(u.UsedInodes, u.Inodes))})
	}

	facts = append(facts,
		fact{"Made as", strings.Join(nonEmpty(string(cmp.Or(v.Status.Backend, v.Spec.Backend)),
			v.Status.FSType,
			string(v.Spec.VolumeMode), "enforcement "+string(v.Spec.Enforcement)), ", ")},
		fact{"On disk", diskText(v, s.Pools)},
	)
	if v.Status.ExpiresAt != nil {
		facts = append(facts, fact{"Freed", v.Status.ExpiresAt.UTC().Format(time.RFC3339)})
	}

	return facts
}

// diskText says where a volume is: its directory in the pool, and what is used
// of it.
func diskText(v *v1alpha1.Volume, pools []v1alpha1.Pool) string {
	if v.Status.Path == "" {
		return "nothing (yet), node " + v.Spec.NodeName
	}

	for i := range pools {
		p := &pools[i]
		if p.Spec.NodeName == v.Spec.NodeName && p.Spec.Pool == v.Status.Pool &&
			p.Status.Path != "" {
			return fmt.Sprintf("%s/%s on node %s; pods get %s", p.Status.Path, v.Name,
				v.Spec.NodeName,
				v.Status.Path)
		}
	}

	return fmt.Sprintf("node %s; pods get %s", v.Spec.NodeName, v.Status.Path)
}

func nonEmpty(words ...string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return w == "" || w == "enforcement " })
}

func poolFacts(p *v1alpha1.Pool, nodes []diagnose.Node, now metav1.Time) []fact {
	stale := slices.ContainsFunc(nodes, func(n diagnose.Node) bool {
		return n.Name == p.Spec.NodeName && (!n.Ready || n.Agent != diagnose.AgentReady)
	})
	pool := diagnose.PoolOf(p, stale)
	return []fact{
		{"Pool", fmt.Sprintf("%s (%s), made %s ago", pool.Name, poolState(&pool),
			age(now, pool.Created))},
		{"Its disk", strings.Join(nonEmpty(pool.Path, pool.Filesystem, pool.UID), ", ")},
		{"Its room", fmt.Sprintf("%s available of %s, %s promised, at most %s for one volume",
			diagnose.Size(pool.AvailableBytes), diagnose.Size(pool.CapacityBytes),
			diagnose.Size(pool.PromisedBytes), diagnose.Size(pool.LargestVolumeBytes))},
	}
}

func printConditions(w io.Writer, s *diagnose.Story, alone bool, now metav1.Time) error {
	rows := [][]string{{"CONDITION", "OF", "STATUS", "REASON", "FOR", "MESSAGE"}}
	add := func(of string, all []metav1.Condition) {
		for _, c := range all {
			rows = append(rows, []string{c.Type, of, string(c.Status), c.Reason,
				age(now, c.LastTransitionTime), oneLine(c.Message)})
		}
	}
	for i := range s.Volumes {
		if alone {
			add(s.Volumes[i].Name, s.Volumes[i].Status.Conditions)
		}
	}

	for i := range s.Pools {
		add(s.Pools[i].Name, s.Pools[i].Status.Conditions)
	}

	if len(rows) == 1 {
		return nil
	}

	fmt.Fprintln(w)
	return table(w, rows)
}

// printVolumesOf lists the volumes of a pool.
func printVolumesOf(w io.Writer, s *diagnose.Story, now metav1.Time, paint show.Paint) error {
	if len(s.Volumes) == 0 {
		return nil
	}

	links := diagnose.NewLinks(nil, nil)
	var all []diagnose.Volume
	for i := range s.Volumes {
		all = append(all, diagnose.VolumeOf(&s.Volumes[i], links, s.At))
	}

	diagnose.SortVolumes(all, "size")
	fmt.Fprintln(w)
	return printVolumes(w, all, false, now, paint)
}

func printEvents(w io.Writer, s *diagnose.Story, now metav1.Time) error {
	fmt.Fprintln(w)
	if len(s.Events) == 0 {
		fmt.Fprintln(w, "There are no events (the API server keeps them for an hour).")
		return nil
	}

	rows := [][]string{{"EVENT", "OF", "TYPE", "AGO", "MESSAGE"}}
	for i := range s.Events {
		e := &s.Events[i]
		rows = append(rows, []string{e.Reason, e.InvolvedObject.Kind + "/" +
			e.InvolvedObject.Name, e.Type,
			age(now, metav1.Time{Time: diagnose.EventTime(e)}), oneLine(e.Message)})
	}

	return table(w, rows)
}

// table prints rows without blanks at their ends.
func table(w io.Writer, rows [][]string) error {
	body := make([]row, 0, len(rows))
	for _, cells := range rows[1:] {
		body = append(body, row{cells: cells})
	}
	return colouredTable(w, show.Paint{}, rows[0], body)
}

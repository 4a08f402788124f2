package admin

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// NewRecover is `recover`, called by kubectl or as a part of quarry.
func NewRecover(caller string) *cobra.Command {
	var (
		to      cluster
		in      agents
		o       show.Output
		options rescue.Options
		apply   bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use: "recover", Short: "Write the cluster's objects again from what is on the nodes' disks",
		Long: `Write the cluster's objects again from what is on the nodes' disks.

It reads the disks of every node through the agents (as kubectl exec does, so
you need the rights for that), compares them with the Volumes, PersistentVolumes
and claims of the cluster, and prints a plan: one line for each thing it would
do, and why. Nothing is changed without --apply. With it each step is done in
order and can be repeated: a second run goes on where the first stopped.

  * After the API server's data was lost: Volumes and PersistentVolumes are
    written again. Each PersistentVolume waits for its claim by namespace and
    name, so claims that you apply again from your manifests bind to their old
    data. --claims makes them as well.
  * After a disk was moved to another node, or a node came back under another
    name: PersistentVolumes are fixed to a node, so Volume and PersistentVolume
    are replaced under the same names while policy Retain guards the data. It is
    refused while pods hold the volume.
  * A disk of another cluster is listed and left alone, unless --take-over names
    that cluster.
  * What is contradictory (two volumes for one claim, a copied disk) is listed,
    and nothing is done about it until you decide.

It ends with status 1 if a disk could not be read, if something was refused or
is contradictory, or if a step failed.`,
		Example: fmt.Sprintf(`  # What would be done:
  %[1]s recover
  # Do it, and make the claims of two namespaces as well:
  %[1]s recover --apply --claims --namespace shop,easemesh
  # These disks come from a cluster that is no more:
  %[1]s recover --apply --take-over 6d0f1c1e-3b1c-4a53-9a55-30e7a0a6f6a2`, caller),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := o.IsJSON()
			if err != nil {
				return err
			}

			r, err := to.rescuer()
			if err != nil {
				return err
			}

			nodes, unread, err := in.disks(cmd.Context(), to.config, r.Client)
			if err != nil {
				return err
			}

			snapshot, err := r.Take(cmd.Context(), disksOf(nodes), unread)
			if err != nil {
				return err
			}

			steps := rescue.Plan(snapshot, options)
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), steps)
			} else {
				err = printPlan(cmd.OutOrStdout(), snapshot, steps)
			}

			if err != nil {
				return err
			}

			if apply {
				r.Patience = timeout
				r.Say = func(format string, args ...any) {
					fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
				}
				err = r.Apply(cmd.Context(), steps)
			} else if !asJSON && changes(steps) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(),
					"\nNothing was changed. `%s recover --apply`, with the same flags, does it.\n",
					caller)
			}

			if err != nil {
				return fmt.Errorf("not everything worked; run this again when what is named was "+
					"put right:\n%w", err)
			}

			return undecided(steps)
		},
	}
	to.flags(cmd.Flags())
	in.flags(cmd.Flags())
	o.Flags(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&apply, "apply", false, "do what the plan says")
	f.BoolVar(&options.Claims, "claims", false, "make claims again that are gone")
	f.StringSliceVarP(&options.Namespaces, "namespace", "n", nil,
		"only volumes of claims in these namespaces")

	f.StringVar(&options.TakeOver, "take-over", "",
		"the id of another cluster whose disks are to belong to this one")

	f.StringSliceVar(&options.Only, "only", nil,
		"only these volumes; decides which of several of one PersistentVolume is meant")

	f.DurationVar(&timeout, "timeout", rescue.DefaultPatience,
		"how long to wait for an agent, or for a claim to be bound, in each step")
	return cmd
}

func changes(steps []rescue.Step) (n int) {
	for i := range steps {
		if steps[i].Changes() {
			n++
		}
	}
	return n
}

// undecided is the error for what a person has to look at.
func undecided(steps []rescue.Step) error {
	n := 0
	for i := range steps {
		if steps[i].NeedsDecision() {
			n++
		}
	}

	if n == 0 {
		return nil
	}

	return fmt.Errorf("%d of the lines above need a person (%s, %s, %s)", n, rescue.Unread,
		rescue.Conflict, rescue.Refused)
}

func printPlan(w io.Writer, s *rescue.Snapshot, steps []rescue.Step) error {
	volumes, trashed, nodes := 0, 0, map[string]bool{}
	for _, d := range s.Disks {
		nodes[d.Node] = true
		for _, f := range d.Volumes {
			if f.InTrash {
				trashed++
			} else {
				volumes++
			}
		}
	}

	fmt.Fprintf(w, "Pools read: %d, on %d nodes; volumes: %d, and %d in the trash. This is "+
		"cluster %s.\n\n", len(s.Disks), len(nodes), volumes, trashed, s.ClusterID)
	if len(steps) == 0 {
		fmt.Fprintln(w, "The cluster's objects say what is on disk. There is nothing to do.")
		return nil
	}

	rows := [][]string{{"STEP", "OBJECT", "NODE", "CLAIM", "WHY"}}
	for i := range steps {
		step := &steps[i]
		rows = append(rows, []string{string(step.Verb), step.Object, step.Node, step.Claim,
			step.Why})
	}

	if err := show.Table(w, rows...); err != nil {
		return err
	}

	for i, first := 0, true; i < len(steps); i++ {
		if steps[i].Sees == "" {
			continue
		}
		if first {
			fmt.Fprintln(w, "\nWhat will be seen of it:")
			first = false
		}

		fmt.Fprintf(w, "  %s: %s\n", steps[i].Object, steps[i].Sees)
	}

	return nil
}

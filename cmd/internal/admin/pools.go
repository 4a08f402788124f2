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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

// poolsCommand is `pools`, and its flags.
type poolsCommand struct {
	look     looking
	o        show.Format
	sort     string
	watch    bool
	node     string
	wrong    bool
	selector string

	matching labels.Selector
	kube     client.WithWatch
}

func newPools() *cobra.Command {
	c := &poolsCommand{}
	cmd := &cobra.Command{
		Use: "pools", Aliases: []string{"pool"},
		Short: "List pools: their room, their volumes, and whether their disk is there",
		Long: `List pools: their room, their volumes, and whether their disk is there. Nothing
is changed.

AVAILABLE is what can still be promised to volumes, LARGEST the largest volume
that can be made now. STATE is Ready, or why it is not; it is marked as
unwatched where the node's agent is not ready, so that it is as of before.

With --watch the list is followed by a line for each pool that changes, as it
happens.`,
		Example: `  kubectl quarry pools
  # What has the least room:
  kubectl quarry pools --sort available -o wide
  kubectl quarry pools --node node1 --watch`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	c.look.to.flags(cmd.Flags())
	c.look.in.flags(cmd.Flags())
	c.o.Flags(cmd.Flags(), show.Wide, show.AsJSON, show.YAML, show.Name)
	f := cmd.Flags()
	f.StringVar(&c.node, "node", "", "only pools of this node")
	f.StringVarP(&c.selector, "selector", "l", "", "only pools with these labels")
	f.BoolVar(&c.wrong, "wrong", false, "only pools that are not ready, or that nobody looks after")
	f.StringVar(&c.sort, "sort", "name", "by "+strings.Join(diagnose.PoolSortKeys, ", "))
	f.BoolVarP(&c.watch, "watch", "w", false, "go on and say what changes")
	f.DurationVar(&c.look.timeout, "timeout", 30*time.Second, "how long to wait for the API server")
	completeFlag(cmd, "sort", diagnose.PoolSortKeys)

	return cmd
}

func (c *poolsCommand) run(cmd *cobra.Command) (err error) {
	if err := c.o.Check(); err != nil {
		return err
	}
	if !slices.Contains(diagnose.PoolSortKeys, c.sort) {
		return fmt.Errorf("--sort %q is not one of %s", c.sort,
			strings.Join(diagnose.PoolSortKeys, ", "))
	}
	if c.matching, err = labels.Parse(c.selector); err != nil {
		return fmt.Errorf("--selector: %w", err)
	}
	if c.kube, err = c.look.to.connect(); err != nil {
		return err
	}

	all, err := c.list(cmd.Context())
	if err != nil {
		return noRight(err)
	}

	diagnose.SortPools(all, c.sort)
	if c.watch {
		return c.follow(cmd, all)
	}

	return c.print(cmd, all)
}

// list reads the pools that are meant.
func (c *poolsCommand) list(ctx context.Context) ([]diagnose.Pool, error) {
	s, err := c.look.selectors()
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, c.look.timeout)
	defer cancel()

	found, err := diagnose.LookAtPools(ctx, c.kube, s, time.Now())
	if err != nil {
		return nil, err
	}

	return slices.DeleteFunc(found.PoolsNow(), func(p diagnose.Pool) bool {
		return !c.accepts(&p)
	}), nil
}

// accepts reports whether a pool is meant.
func (c *poolsCommand) accepts(p *diagnose.Pool) bool {
	return (c.node == "" || p.Node == c.node) && c.matching.Matches(labels.Set(p.Labels)) &&
		(!c.wrong || !p.Ready || p.Stale)
}

func (c *poolsCommand) print(cmd *cobra.Command, all []diagnose.Pool) error {
	w := cmd.OutOrStdout()
	if printed, err := c.o.Structured(w, all); printed || err != nil {
		return err
	}

	if c.o.Is(show.Name) {
		for i := range all {
			fmt.Fprintln(w, nameOf(diagnose.KindPool, all[i].Name))
		}
		return nil
	}
	if len(all) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "There are no such pools.")
		return nil
	}

	return printPools(w, all, c.o.Is(show.Wide), metav1.Now(), show.PaintFor(w))
}

func printPools(w io.Writer, all []diagnose.Pool, wide bool, now metav1.Time,
	paint show.Paint) error {
	rows := make([]row, 0, len(all))
	for i := range all {
		r := row{cells: poolCells(&all[i], wide, now)}
		if !all[i].Ready || all[i].Stale {
			r.colour = show.Red
		}
		rows = append(rows, r)
	}

	return colouredTable(w, paint, poolHead(wide), rows)
}

func poolHead(wide bool) []string {
	head := []string{"POOL", "STATE", "AVAILABLE", "CAPACITY", "PROMISED", "LARGEST", "VOLUMES"}
	if wide {
		head = append(head, "ORPHANED", "FS", "QUOTA", "AGE", "UID", "PATH", "LABELS")
	}
	return head
}

// poolCells is a pool as a row.
func poolCells(p *diagnose.Pool, wide bool, now metav1.Time) []string {
	cells := []string{p.Name, poolState(p), diagnose.Size(p.AvailableBytes),
		diagnose.Size(p.CapacityBytes), diagnose.Size(p.PromisedBytes),
		diagnose.Size(p.LargestVolumeBytes), fmt.Sprint(p.Volumes)}
	if !wide {
		return cells
	}

	quota := "none"
	switch {
	case p.Features.ProjectQuota:
		quota = "project"
	case p.Features.SimpleQuota:
		quota = "simple"
	}

	var own []string
	for _, key := range slices.Sorted(maps.Keys(p.Labels)) {
		// Its node and name are in the first column.
		if key != v1alpha1.LabelNode && key != v1alpha1.LabelPool {
			own = append(own, key+"="+p.Labels[key])
		}
	}

	return append(cells, fmt.Sprint(p.Orphaned), p.Filesystem, quota, age(now, p.Created),
		p.UID, p.Path,
		strings.Join(own, ","))
}

// follow prints the pools that are there, and then each that changes in what is
// shown of it. Whether somebody looks after it is as of the beginning.
func (c *poolsCommand) follow(cmd *cobra.Command, all []diagnose.Pool) error {
	said, table, stale := changesOf{}, columns{w: cmd.OutOrStdout()}, map[string]bool{}
	wide := c.o.Is(show.Wide)
	if c.o.Is("") || wide {
		table.print(poolHead(wide))
	}

	say := func(p *diagnose.Pool) {
		if !said.isNew(p.Name, poolCells(p, true, p.Created)) {
			return
		}

		printed, err := c.o.Structured(table.w, p)
		switch {
		case printed || err != nil:
		case c.o.Is(show.Name):
			fmt.Fprintln(table.w, nameOf(diagnose.KindPool, p.Name))
		default:
			table.print(poolCells(p, wide, metav1.Now()))
		}
	}
	for i := range all {
		stale[all[i].Node] = all[i].Stale
		say(&all[i])
	}

	return watched(cmd.Context(), c.kube, &v1alpha1.Pool{}, &v1alpha1.PoolList{},
		func(o client.Object, gone bool) {
			object, is := o.(*v1alpha1.Pool)
			if !is {
				return
			}

			p := diagnose.PoolOf(object, stale[object.Spec.NodeName])
			if gone {
				p.State, p.Stale = "Gone", false
			}

			if c.accepts(&p) {
				say(&p)
			} else {
				delete(said, p.Name)
			}

			if gone {
				delete(said, p.Name)
			}
		})
}

package admin

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

const (
	// screen is how many lines a table has where not all were asked for, and
	// alike how many objects are named that have the same trouble.
	screen = 10
	alike  = 3
)

func newStatus() *cobra.Command {
	var (
		look looking
		o    show.Format
	)
	cmd := &cobra.Command{
		Use: "status", Short: "Say on one screen what is wrong, and what to do next",
		Long: `Say on one screen what there is, what is wrong, and what to do next: nodes and
their agents, pools and their room, claims that wait and why, volumes that
cannot be used. The worst comes first, and a cause before what follows from it.
Nothing is changed.

It ends with status 0 if nothing is wrong, 1 if something is, and 2 if it could
not look. What is only said as NOTE is not wrong. With -o wide nothing is left
out for want of room.`,
		Example: `  kubectl quarry status
  kubectl quarry status -o json | jq -r '.findings[] | [.severity, .kind, .name, .reason] | @tsv'
  kubectl quarry status >/dev/null || echo "storage needs somebody"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return err
			}

			c, _, err := look.look(cmd.Context())
			if err != nil {
				return err
			}

			status, out := c.Status(), cmd.OutOrStdout()
			printed, err := o.Structured(out, status)
			if !printed && err == nil {
				err = printStatus(out, status, o.Is(show.Wide), show.PaintFor(out))
			}

			if err == nil && !status.Healthy {
				return &exit{status: exitWrong}
			}

			return err
		},
	}
	look.flags(cmd.Flags())
	o.Flags(cmd.Flags(), show.Wide, show.AsJSON, show.YAML)

	return looks(cmd)
}

// printStatus prints the screen. What does not fit on one is left out and
// counted, unless it is to be wide; nothing that is wrong is left out without
// its group being named.
func printStatus(out io.Writer, s *diagnose.Status, wide bool, paint show.Paint) error {
	var w bytes.Buffer
	fmt.Fprintln(&w, headline(s, paint))
	fmt.Fprintf(&w, "Controller: %d of %d ready. Volumes: %d, of which %d ready, %d in the trash, "+
		"%d orphaned.\n", s.Controller.Ready, s.Controller.Total, s.Volumes.Total, s.Volumes.Ready,
		s.Volumes.Trashed, s.Volumes.Orphaned)

	sections := []error{
		printNodes(&w, s, wide, paint),
		printPoolsOf(&w, s, wide, paint),
		printWaiting(&w, s, wide, paint),
	}
	for _, err := range sections {
		if err != nil {
			return err
		}
	}

	printFindings(&w, s, wide, paint)
	_, err := w.WriteTo(out)
	return err
}

// headline is all that somebody reads who is in a hurry.
func headline(s *diagnose.Status, paint show.Paint) string {
	n := map[diagnose.Severity]int{}
	for i := range s.Findings {
		n[s.Findings[i].Severity]++
	}

	switch {
	case n[diagnose.Critical] > 0 && n[diagnose.Warning] > 0:
		return paint.In(show.Red, fmt.Sprintf("%d critical, and %s.", n[diagnose.Critical],
			counted(n[diagnose.Warning], "warning")))
	case n[diagnose.Critical] > 0:
		return paint.In(show.Red, fmt.Sprintf("%d critical.", n[diagnose.Critical]))
	case n[diagnose.Warning] > 0:
		return paint.In(show.Yellow, fmt.Sprintf("Nothing is critical. %s.",
			counted(n[diagnose.Warning], "warning")))
	case len(s.Nodes) == 0:
		return "Nothing is wrong, and no node has an agent."
	}

	return paint.In(show.Green, "All is well.")
}

// counted is a number of things in words.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// section prints a table of at most a screen, the rows that matter first, and
// what was left out.
func section(w io.Writer, wide bool, paint show.Paint, head []string, rows []row) error {
	if len(rows) == 0 {
		return nil
	}

	left := 0
	if !wide && len(rows) > screen {
		slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(b.weight, a.weight) })
		left = len(rows) - screen
		rows = rows[:screen]
	}

	fmt.Fprintln(w)
	if err := colouredTable(w, paint, head, rows); err != nil {
		return err
	}
	if left > 0 {
		fmt.Fprintf(w, "... and %d more (-o wide)\n", left)
	}

	return nil
}

// row is a row of a table, in a colour if it has one; those with the greatest
// weight are kept where there are too many.
type row struct {
	cells  []string
	colour show.Colour
	weight int
}

// colouredTable prints a table with its rows in their colours. They are put in
// when the columns are aligned already, since they have no width.
func colouredTable(w io.Writer, paint show.Paint, head []string, rows []row) error {
	var plain bytes.Buffer
	cells := [][]string{head}
	for i := range rows {
		cells = append(cells, rows[i].cells)
	}

	if err := show.Table(&plain, cells...); err != nil {
		return err
	}

	for i, line := range strings.Split(strings.TrimSuffix(plain.String(), "\n"), "\n") {
		line = strings.TrimRight(line, " ")
		if i > 0 && rows[i-1].colour != "" {
			line = paint.In(rows[i-1].colour, line)
		}
		fmt.Fprintln(w, line)
	}

	return nil
}

func printNodes(w io.Writer, s *diagnose.Status, wide bool, paint show.Paint) error {
	head := []string{"NODE", "STATE", "AGENT", "POOLS", "VOLUMES", "AVAILABLE", "CAPACITY"}
	if wide {
		head = append(head, "AGENT POD", "IMAGE")
	}

	rows := make([]row, 0, len(s.Nodes))
	for i := range s.Nodes {
		n := &s.Nodes[i]
		state := "Ready"
		switch {
		case !n.Exists:
			state = "Gone"
		case !n.Ready:
			state = "NotReady"
		}

		r := row{cells: []string{n.Name, state, string(n.Agent),
			fmt.Sprintf("%d/%d", n.PoolsReady, n.Pools), fmt.Sprint(n.Volumes),
			diagnose.Size(n.AvailableBytes), diagnose.Size(n.CapacityBytes)}}
		if wide {
			r.cells = append(r.cells, n.AgentPod, n.Image)
		}

		if state != "Ready" || n.Agent != diagnose.AgentReady || n.PoolsReady < n.Pools {
			r.colour, r.weight = show.Red, 1
		}

		rows = append(rows, r)
	}

	return section(w, wide, paint, head, rows)
}

func printPoolsOf(w io.Writer, s *diagnose.Status, wide bool, paint show.Paint) error {
	head := []string{"POOL", "STATE", "AVAILABLE", "CAPACITY", "VOLUMES"}
	if wide {
		head = append(head, "FILESYSTEM", "PATH")
	}

	rows := make([]row, 0, len(s.Pools))
	for i := range s.Pools {
		p := &s.Pools[i]
		r := row{cells: []string{p.Name, poolState(p), diagnose.Size(p.AvailableBytes),
			diagnose.Size(p.CapacityBytes), fmt.Sprint(p.Volumes)}}
		if wide {
			r.cells = append(r.cells, p.Filesystem, p.Path)
		}

		switch {
		case !p.Ready || p.Stale:
			r.colour, r.weight = show.Red, 2
		case s.IsWrong(diagnose.KindPool, "", p.Name):
			r.colour, r.weight = show.Yellow, 1
		}

		rows = append(rows, r)
	}

	return section(w, wide, paint, head, rows)
}

// poolState is a pool's state in one word, marked if it is as of before.
func poolState(p *diagnose.Pool) string {
	if p.Stale {
		return p.State + " (unwatched)"
	}
	return p.State
}

func printWaiting(w io.Writer, s *diagnose.Status, wide bool, paint show.Paint) error {
	head := []string{"CLAIM", "CLASS", "SIZE", "NODE", "WAITS", "WHY"}
	rows := make([]row, 0, len(s.Waiting))
	for i := range s.Waiting {
		c := &s.Waiting[i]
		r := row{cells: []string{c.Namespace + "/" + c.Claim, c.StorageClass,
			diagnose.Size(c.SizeBytes), c.Node, age(s.Time, c.Since), c.Reason}}
		if c.Wrong {
			r.colour, r.weight = show.Yellow, 1
		}

		rows = append(rows, r)
	}

	return section(w, wide, paint, head, rows)
}

// age is how long ago something was, as kubectl says it.
func age(now, then metav1.Time) string {
	if then.IsZero() {
		return ""
	}
	return duration.HumanDuration(max(now.Sub(then.Time), time.Duration(0)))
}

// printFindings prints what is wrong and what to do, numbered: each is a task,
// however many objects it is about.
func printFindings(w io.Writer, s *diagnose.Status, wide bool, paint show.Paint) {
	if len(s.Findings) == 0 {
		return
	}

	fmt.Fprintln(w)
	if s.Healthy {
		fmt.Fprintln(w, "Worth knowing:")
	} else {
		fmt.Fprintln(w, "What is wrong, and what to do next:")
	}

	findings(w, s.Time, s.Findings, wide, paint)
}

// findings prints each group of findings as an item of a list.
func findings(w io.Writer, now metav1.Time, all []diagnose.Finding, wide bool, paint show.Paint) {
	colours := map[diagnose.Severity]show.Colour{
		diagnose.Critical: show.Red, diagnose.Warning: show.Yellow, diagnose.Note: show.Faint,
	}
	for i, g := range diagnose.Groups(all) {
		severity := paint.In(colours[g.Severity], strings.ToUpper(string(g.Severity)))
		if len(g.Findings) == 1 {
			f := &g.Findings[0]
			fmt.Fprintf(w, "%2d. %s  %s %s: %s%s\n", i+1, severity, kindWord(g.Kind), f.Object(),
				g.Reason, whose(f))
			fmt.Fprintf(w, "    %s%s\n", oneLine(f.Message), sinceText(now, f.Since))
		} else {
			fmt.Fprintf(w, "%2d. %s  %s: %s\n", i+1, severity,
				counted(len(g.Findings), kindWord(g.Kind)), g.Reason)
			printAlike(w, now, g.Findings, wide)
		}

		if g.Remedy != "" {
			fmt.Fprintf(w, "    -> %s\n", oneLine(g.Remedy))
		}

		if g.Runbook != "" {
			fmt.Fprintf(w, "       %s\n", paint.In(show.Faint, g.Runbook))
		}
	}
}

// printAlike names the objects that have the same trouble, a few of them unless
// it is to be wide.
func printAlike(w io.Writer, now metav1.Time, all []diagnose.Finding, wide bool) {
	for i := range all {
		if !wide && i == alike {
			fmt.Fprintf(w, "    ... and %d more (-o wide)\n", len(all)-alike)
			return
		}
		fmt.Fprintf(w, "    %s%s: %s%s\n", all[i].Object(), whose(&all[i]),
			oneLine(all[i].Message), sinceText(now, all[i].Since))
	}
}

// whose says whose volume a finding is about, and where that is.
func whose(f *diagnose.Finding) string {
	switch {
	case f.Claim != "":
		return " (claim " + f.Claim + ", node " + f.Node + ")"
	case f.Kind == diagnose.KindVolume:
		return " (node " + f.Node + ")"
	}
	return ""
}

func sinceText(now metav1.Time, since *metav1.Time) string {
	if since == nil || since.IsZero() {
		return ""
	}
	return " (for " + age(now, *since) + ")"
}

// kindWord is what a kind is called in a sentence.
func kindWord(kind string) string {
	if kind == diagnose.KindClaim {
		return "claim"
	}
	if kind == diagnose.KindController {
		return "controller"
	}
	return strings.ToLower(kind[:1]) + kind[1:]
}

// oneLine keeps what others wrote from ending a line, and a terminal from
// heeding it.
func oneLine(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f:
			return '?'
		}

		return r
	}, text))
}

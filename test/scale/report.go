package scale

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/test/measure"
)

// Report is what is kept of runs, one for each size of a cluster: scale.json,
// and what is made of it for people.
type Report struct {
	page string
	dir  string
	runs []reported
}

// reported is a run as it is kept.
type reported struct {
	measure.Origin
	*Result
	// Broke says what ended the run before its end.
	Broke string `json:"broke,omitempty"`
}

// OpenReport reads what a directory has, which may be nothing. The page's block
// "scale" is written, too.
func OpenReport(dir, page string) (*Report, error) {
	r := &Report{dir: dir, page: page}
	text, err := os.ReadFile(filepath.Join(dir, "scale.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &r.runs); err != nil {
		return nil, fmt.Errorf("read scale.json: %w", err)
	}
	return r, nil
}

// Add keeps a run, in the place of an earlier one of its size, and writes
// everything.
func (r *Report) Add(result *Result, broke error) error {
	repository, err := repositoryDir()
	if err != nil {
		return err
	}
	now := reported{Origin: measure.OriginOf(repository), Result: result}
	if broke != nil {
		now.Broke, _, _ = strings.Cut(broke.Error(), "\n")
	}
	r.runs = slices.DeleteFunc(r.runs, func(old reported) bool { return old.Nodes == result.Nodes })
	r.runs = append(r.runs, now)
	slices.SortFunc(r.runs, func(a, b reported) int { return a.Nodes - b.Nodes })
	text, err := json.MarshalIndent(r.runs, "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"scale.json": append(text, '\n')}
	for name, plot := range r.plots() {
		files["scale-"+name+".svg"] = []byte(plot.SVG())
	}
	if err := measure.WriteFiles(r.dir, files); err != nil {
		return err
	}
	return measure.ReplaceBlock(r.page, "scale", r.markdown())
}

const mebibyte = 1 << 20

func (r *Report) markdown() string {
	var b strings.Builder
	for _, run := range r.runs {
		fmt.Fprintf(&b, "* %d nodes, %d volumes: %s. `make bench-scale NODES=%d VOLUMES=%d`\n", run.Nodes, run.Volumes,
			run.Origin, run.Nodes, run.Volumes)
		if run.Broke != "" {
			fmt.Fprintf(&b, "  **It ended early: %s**\n", run.Broke)
		}
	}
	b.WriteString("\n")
	b.WriteString(r.table().Markdown())
	b.WriteString("\nRequests of the API server for one volume's life in a burst (Quarry's, of all " +
		"parts; the floor's " +
		"in parentheses):\n\n")
	b.WriteString(r.requests(func(run reported) (measure.Requests, measure.Requests) {
		return run.Requests, run.FloorRequests
	}, 0.05).Markdown())
	b.WriteString("\nRequests per minute at rest:\n\n")
	b.WriteString(r.requests(func(run reported) (measure.Requests, measure.Requests) {
		return run.Idle, nil
	}, 2).Markdown())
	b.WriteString("\n")
	for _, name := range slices.Sorted(maps.Keys(r.plots())) {
		fmt.Fprintf(&b, "![%s](%s/scale-%s.svg)\n", r.plots()[name].Title, filepath.Base(r.dir), name)
	}
	return b.String()
}

func (r *Report) head(first string) []string {
	head := []string{first}
	for _, run := range r.runs {
		head = append(head, fmt.Sprintf("%d nodes, %d volumes", run.Nodes, run.Volumes))
	}
	return head
}

// table is one row for each figure.
func (r *Report) table() *measure.Table {
	t := &measure.Table{Head: r.head("")}
	row := func(name string, of func(run reported) any) {
		cells := []any{name}
		for _, run := range r.runs {
			cells = append(cells, of(run))
		}
		t.Row(cells...)
	}
	comparison := func(name string, of func(run reported) Comparison) {
		row(name+", p50 / p99, ms", func(run reported) any {
			c := of(run)
			return fmt.Sprintf("%.0f / %.0f", c.Quarry.P50, c.Quarry.P99)
		})
		row("· against the floor", func(run reported) any { return of(run).Ratio() })
	}
	rate := func(name string, of func(run reported) Comparison) {
		comparison(name, of)
		row("· per second (floor)", func(run reported) any {
			return fmt.Sprintf("%.1f (%.1f)", of(run).Quarry.Second, of(run).Floor.Second)
		})
	}
	comparison("one claim to Bound", func(run reported) Comparison { return run.One })
	comparison("one claim deleted", func(run reported) Comparison { return run.Gone1 })
	rate("many claims at once", func(run reported) Comparison { return run.Many })
	rate("many deleted at once", func(run reported) Comparison { return run.Gone })
	row("capacity object after its Pool, median / worst, ms", func(run reported) any {
		return fmt.Sprintf("%.0f / %.0f", run.FreshMillisecond, run.FreshWorst)
	})
	row("leader's start to the first claim Bound, s", func(run reported) any { return run.StartSeconds })
	row("kill -9 of the leader to a claim Bound, s", func(run reported) any { return run.FailoverSeconds })
	row("capacity of all nodes at the first start, s", func(run reported) any { return run.PublishSeconds })
	for _, peak := range []string{"leader, first start", "leader, start", "leader, under load", "standby, start",
		"standby, under load", "standby, taking over"} {
		row(peak+": highest memory, MiB", func(run reported) any { return float64(run.Peaks[peak]) / mebibyte })
	}
	for _, name := range []string{leaderName, standbyName, "agents", "kube-apiserver",
		"kube-controller-manager", "etcd"} {
		row(name+" at rest: memory, MiB / % of a core", func(run reported) any {
			return fmt.Sprintf("%d / %.2f", run.AtRest[name].Resident/mebibyte, run.AtRest[name].CPUPercent)
		})
	}
	for _, name := range []string{leaderName, standbyName, "agents", "floor", "kube-apiserver",
		"kube-controller-manager", "etcd"} {
		row(name+": CPU of a volume's life, ms (floor's)", func(run reported) any {
			return fmt.Sprintf("%.1f (%.1f)", run.CPU[name], run.FloorCPU[name])
		})
	}
	return t
}

// requests is one row for each verb and resource that comes often enough
// somewhere.
func (r *Report) requests(of func(run reported) (measure.Requests, measure.Requests), least float64) *measure.Table {
	t := &measure.Table{Head: r.head("")}
	var names []string
	for _, run := range r.runs {
		quarry, floor := of(run)
		for _, requests := range []measure.Requests{quarry, floor} {
			for name, count := range requests {
				if count >= least && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		cells := []any{name}
		for _, run := range r.runs {
			quarry, floor := of(run)
			cell := fmt.Sprintf("%.2f", quarry[name])
			if floor != nil {
				cell += fmt.Sprintf(" (%.2f)", floor[name])
			}
			cells = append(cells, cell)
		}
		t.Row(cells...)
	}
	return t
}

// plots are figures against the number of nodes.
func (r *Report) plots() map[string]measure.Plot {
	line := func(name string, of func(run reported) float64) measure.Line {
		l := measure.Line{Name: name}
		for _, run := range r.runs {
			if v := of(run); v > 0 {
				l.Points = append(l.Points, measure.Point{X: float64(run.Nodes), Y: v})
			}
		}
		return l
	}
	return map[string]measure.Plot{
		"latency": {Title: "One claim, 20 volumes on each node", X: "nodes", Y: "ms", Lines: []measure.Line{
			line("bound, median", func(run reported) float64 { return run.One.Quarry.P50 }),
			line("bound, p99", func(run reported) float64 { return run.One.Quarry.P99 }),
			line("bound, floor", func(run reported) float64 { return run.One.Floor.P50 }),
			line("deleted, median", func(run reported) float64 { return run.Gone1.Quarry.P50 }),
			line("deleted, floor", func(run reported) float64 { return run.Gone1.Floor.P50 }),
		}},
		"rate": {Title: "Many claims at once", X: "nodes", Y: "per second", Lines: []measure.Line{
			line("bound", func(run reported) float64 { return run.Many.Quarry.Second }),
			line("bound, floor", func(run reported) float64 { return run.Many.Floor.Second }),
			line("deleted", func(run reported) float64 { return run.Gone.Quarry.Second }),
			line("deleted, floor", func(run reported) float64 { return run.Gone.Floor.Second }),
		}},
		"memory": {Title: "Memory of the controller", X: "nodes", Y: "MiB", LogY: true, Lines: []measure.Line{
			line("leader's start", func(run reported) float64 {
				return float64(run.Peaks["leader, start"]) / mebibyte
			}),
			line("leader at rest", func(run reported) float64 {
				return float64(run.AtRest[leaderName].Resident) / mebibyte
			}),
			line("leader under load", func(run reported) float64 {
				return float64(run.Peaks["leader, under load"]) / mebibyte
			}),
			line("standby at rest", func(run reported) float64 {
				return float64(run.AtRest[standbyName].Resident) / mebibyte
			}),
		}},
		"start": {Title: "Starting and taking over, to the first claim", X: "nodes", Y: "s", Lines: []measure.Line{
			line("start", func(run reported) float64 { return run.StartSeconds }),
			line("fail-over", func(run reported) float64 { return run.FailoverSeconds }),
		}},
	}
}

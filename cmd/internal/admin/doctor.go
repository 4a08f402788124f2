package admin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/discovery"

	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/diagnose"
)

func newDoctor(version string) *cobra.Command {
	var (
		look looking
		o    show.Format
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what Quarry needs of the cluster, before the install and after",
		Long: `Check what Quarry needs of the cluster, as far as the API server knows it, from
the ground up: versions of the API server, kubelets and kernels; the
CustomResourceDefinitions and whether they are of this version; controller and
agents; the rights of their accounts; the admission policy that keeps agents to
their own nodes; CSIDrivers; the parameters of StorageClasses; what the
scheduler is told of room. Each finding has its remedy. Nothing is changed.

Where Quarry is not installed it says what would be in the way, and what you may
not do that the chart needs. Name the namespace by --quarry-namespace then.

It ends with status 0 if all is well, 1 if something is wrong (ERROR, WARNING),
and 2 if nothing is known to be wrong and not all could be looked at (UNKNOWN).
What is wrong now, with volumes and pools, says ` + "`kubectl quarry status`" + `.`,
		Example: `  kubectl quarry doctor
  kubectl quarry doctor --quarry-namespace quarry-system   # before the install
  kubectl quarry doctor -o json | jq -r '.checks[] | select(.result == "error") | .message'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return err
			}

			report, err := look.examine(cmd.Context(), version)
			if err != nil {
				return err
			}

			out := cmd.OutOrStdout()
			printed, err := o.Structured(out, report)
			if !printed && err == nil {
				err = printReportOf(out, report, show.PaintFor(out))
			}

			switch {
			case err != nil:
				return err
			case !report.Healthy:
				return &exit{status: exitWrong}
			case !report.Complete:
				return &exit{status: exitNoLook}
			}

			return nil
		},
	}
	look.flags(cmd.Flags())
	o.Flags(cmd.Flags(), show.AsJSON, show.YAML)

	return looks(cmd)
}

// examine looks at the installation.
func (l *looking) examine(ctx context.Context, version string) (*diagnose.Report, error) {
	s, err := l.selectors()
	if err != nil {
		return nil, err
	}

	kube, err := l.to.connect()
	if err != nil {
		return nil, err
	}

	server, err := discovery.NewDiscoveryClientForConfig(l.to.config)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()

	install, err := diagnose.Examine(ctx, kube, server, s, version, time.Now())
	if err != nil {
		return nil, err
	}

	return install.Report(), nil
}

// printReportOf prints the checks in the order in which they build on each
// other.
func printReportOf(out io.Writer, r *diagnose.Report, paint show.Paint) error {
	colours := map[diagnose.Result]show.Colour{
		diagnose.ResultOK: show.Green, diagnose.ResultNote: show.Faint,
		diagnose.ResultWarning: show.Yellow,
		diagnose.ResultError:   show.Red, diagnose.ResultUnknown: show.Yellow,
	}
	var w bytes.Buffer
	n := map[diagnose.Result]int{}
	for _, c := range r.Checks {
		n[c.Result]++
		word := string(c.Result)
		if c.Result != diagnose.ResultOK {
			word = strings.ToUpper(word)
		}

		// The colour has no width.
		fmt.Fprintf(&w, "%s%s  %s: %s\n", paint.In(colours[c.Result], word),
			strings.Repeat(" ", len("WARNING")-len(word)), c.Name, oneLine(c.Message))
		if c.Remedy != "" {
			fmt.Fprintf(&w, "         -> %s\n", oneLine(c.Remedy))
		}

		if c.Doc != "" && c.Result != diagnose.ResultOK {
			fmt.Fprintf(&w, "            %s\n", paint.In(show.Faint, c.Doc))
		}
	}

	fmt.Fprintln(&w)
	switch {
	case !r.Healthy:
		fmt.Fprintln(&w,
			paint.In(show.Red, fmt.Sprintf("%s, %s, and %d of %s could not be looked at.",
				counted(n[diagnose.ResultError],
					"error"), counted(n[diagnose.ResultWarning], "warning"),
				n[diagnose.ResultUnknown], counted(len(r.Checks), "check"))))
	case !r.Complete:
		fmt.Fprintln(&w, paint.In(show.Yellow, fmt.Sprintf("Nothing is known to be wrong; %d of "+
			"%s could not be looked at.", n[diagnose.ResultUnknown],
			counted(len(r.Checks), "check"))))
	default:
		fmt.Fprintln(&w, paint.In(show.Green, "All is well."))
	}

	_, err := w.WriteTo(out)
	return err
}

package admin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// NewCheckAdoption is `quarry adopt --check`, which runs on the node itself, in
// its agent's pod.
func NewCheckAdoption() *cobra.Command {
	var (
		o                     show.Output
		file, node, dir, kind string
		mode, enforcement     string
		check                 bool
		errCheck              = errors.New(
			"only --check is done here; `kubectl quarry adopt` adopts")
		errNotAdoptable             = errors.New("it cannot be adopted as it is")
		defaultMode, defaultEnforce = "Filesystem", string(v1alpha1.EnforcementQuota)
	)
	cmd := &cobra.Command{
		Use:   "adopt --check",
		Short: "Look at what adopting a path of this node would mean; nothing is changed",
		Long: `Look at what is at a path of this node, and say what adopting it as a volume
would mean. Nothing is changed. It is what ` + "`kubectl quarry adopt`" + ` asks the
node's agent. It ends with status 1 if the path cannot be adopted as it is; with
-o json the report says that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := o.IsJSON()
			if err != nil {
				return err
			}
			if !check {
				return errCheck
			}

			c, err := config.LoadFile(file)
			if err != nil {
				return err
			}

			report, err := store.CheckAdoption(cmd.Context(), c.PoolsOf(node), dir, kind, mode,
				enforcement)
			if err != nil {
				return err
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), report)
			}

			printReport(cmd.OutOrStdout(), &report)
			if len(report.Problems) > 0 {
				return errNotAdoptable
			}

			return nil
		},
	}
	o.Flags(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&check, "check", false, "look only; required")
	f.StringVar(&file, "config", "/etc/quarry/agent.yaml",
		"the agents' configuration, which names the pools")

	f.StringVar(&node, "node-name", os.Getenv("NODE_NAME"),
		"the name of the node, where its pools differ from the others'")
	f.Lookup("node-name").DefValue = "$NODE_NAME"
	f.StringVar(&dir, "path", "", "the path to look at")
	f.StringVar(&kind, "type", string(v1alpha1.AdoptDirectory),
		"what is there: Directory, DirectoryOrCreate, File or FileOrCreate")
	f.StringVar(&mode, "volume-mode", defaultMode, "Filesystem or Block")
	f.StringVar(&enforcement, "enforcement", defaultEnforce, "quota, strict or none")

	if err := cmd.MarkFlagRequired("path"); err != nil {
		panic(err) // the flag is defined above
	}

	return cmd
}

// printReport says what is at a path.
func printReport(w io.Writer, r *store.AdoptionReport) {
	switch r.Found {
	case store.FoundNothing:
		fmt.Fprintf(w, "%s: there is nothing; the volume is made empty.\n", r.Path)
	case store.FoundDirectory:
		more := ""
		if r.Partly {
			more = "more than "
		}

		fmt.Fprintf(w, "%s: a directory with %s%d files and directories, %s, in pool %s (%s).\n",
			r.Path, more, r.Files, show.Size(r.UsedBytes), r.Pool, r.Directory)
	case store.FoundImage:
		holds := "no filesystem"
		if r.Filesystem != "" {
			holds = "filesystem " + r.Filesystem
		}

		fmt.Fprintf(w, "%s: a file of %s (%s on disk) with %s, in pool %s (%s).\n", r.Path,
			show.Size(r.SizeBytes), show.Size(r.UsedBytes), holds, r.Pool, r.Directory)
	}

	if len(r.Mounts) > 0 {
		fmt.Fprintf(w, "It is in use now, which may go on: %s\n", strings.Join(r.Mounts, ", "))
	}

	for _, problem := range r.Problems {
		fmt.Fprintf(w, "Problem: %s\n", problem)
	}
}

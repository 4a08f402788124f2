package admin

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// volumeList is a command that lists volumes: which ones, what is said when
// there are none, and what stands in the last column.
type volumeList struct {
	which  func(*rescue.Rescuer, context.Context) ([]v1alpha1.Volume, error)
	none   string
	column string
	cell   func(*v1alpha1.Volume) string
}

// command makes cmd, which says how it is used, that command.
func (l volumeList) command(cmd *cobra.Command) *cobra.Command {
	var (
		to        cluster
		o         show.Output
		namespace string
	)
	cmd.Use, cmd.Aliases, cmd.Args = "list", []string{"ls"}, cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := o.IsJSON()
		if err != nil {
			return err
		}

		r, err := to.rescuer()
		if err != nil {
			return err
		}

		all, err := l.which(r, cmd.Context())
		if err != nil {
			return err
		}

		all = inNamespace(all, namespace)
		if asJSON {
			return show.JSON(cmd.OutOrStdout(), all)
		}
		if len(all) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), l.none)
			return nil
		}

		rows := [][]string{{"VOLUME", "NODE", "POOL", "CLAIM", "SIZE", "STATE", l.column}}
		for i := range all {
			rows = append(rows, volumeRow(&all[i], string(all[i].Status.Phase), l.cell(&all[i])))
		}

		return show.Table(cmd.OutOrStdout(), rows...)
	}
	to.flags(cmd.Flags())
	o.Flags(cmd.Flags())
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "",
		"only volumes of this namespace's claims")

	return cmd
}

package admin

import (
	"github.com/spf13/cobra"

	"github.com/quarry-storage/quarry/cmd/internal/show"
)

// NewPlugin is `kubectl quarry`. kubectl runs any program called kubectl-quarry
// that it finds in PATH.
func NewPlugin(version, commit string) *cobra.Command {
	root := &cobra.Command{
		Use:         "kubectl-quarry",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl quarry"},
		Short:       "Look at Quarry, and look after its volumes",
		Version:     version,
		// Errors are printed once, by main.
		SilenceUsage: true, SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newStatus(), newVolumes(), newPools(), newDescribe(), newDoctor(version),
		newTrash(), newOrphans(), newAdopt(), NewRecover("kubectl quarry"),
		show.NewVersion("kubectl quarry", version, commit),
	)

	return root
}

// parent is a command that only holds others.
func parent(use, short, long string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(children...)
	return cmd
}

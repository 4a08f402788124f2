package admin

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

func newOrphans() *cobra.Command {
	return parent("orphans", "Volumes that are kept and that no PersistentVolume names",
		`Volumes that are kept and that no PersistentVolume names.

That is what is left when a PersistentVolume was set to Retain and then deleted
to rescue its data. Nothing happens to such a volume until a person decides.
Volumes that do not even have a Volume object any more are found by
`+"`kubectl quarry recover`.",
		newOrphansList(), newOrphansRestore(), newOrphansDelete())
}

func newOrphansList() *cobra.Command {
	return volumeList{
		which: (*rescue.Rescuer).Orphans, none: "There are no orphans.",
		column: "CLASS", cell: func(v *v1alpha1.Volume) string { return v.Spec.StorageClassName },
	}.command(&cobra.Command{
		Short:   "List the volumes that no PersistentVolume names",
		Example: `  kubectl quarry orphans list`,
	})
}

func newOrphansRestore() *cobra.Command {
	var o restoring
	cmd := &cobra.Command{
		Use: "restore VOLUME", Short: "Give a volume its PersistentVolume and its claim again",
		Long: `Give a volume its PersistentVolume and its claim again.

What you will see: the PersistentVolume appears under its old name, for the old
claim or the one given by --claim, then that claim if it does not exist, and the
two are Bound. Nothing is done when a claim of that name is bound to something
else. A second run goes on where the first stopped.`,
		Example: `  kubectl quarry orphans restore pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1
  # For a claim that a chart or a StatefulSet makes:
  kubectl quarry orphans restore pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1 \
    --claim shop/data-db-0 --no-claim`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, args[0], v1alpha1.DesiredPresent)
		},
	}
	o.flags(cmd.Flags())

	return cmd
}

func newOrphansDelete() *cobra.Command {
	var (
		to      cluster
		yes     bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use: "delete VOLUME", Short: "Delete a volume that no PersistentVolume names, for good",
		Long: `Delete a volume that no PersistentVolume names, for good. There is no way back.

It is refused while a PersistentVolume names the volume. While something on the
node still uses it, the wish is recorded, and the volume goes as soon as it is
free.`,
		Example: `  kubectl quarry orphans delete pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1 --yes`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := to.rescuer()
			if err != nil {
				return err
			}

			all, err := r.Orphans(cmd.Context())
			if err != nil {
				return err
			}

			// A second run waits for what the first one asked for.
			going, err := r.Deleting(cmd.Context())
			if err != nil {
				return err
			}

			return deleteOne(cmd, r, append(all, going...), args[0],
				"an orphan: a PersistentVolume names it, or it does not exist", yes, timeout)
		},
	}
	to.flags(cmd.Flags())
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().DurationVar(&timeout, "timeout", rescue.DefaultPatience,
		"how long to wait for the node's agent")

	return cmd
}

package admin

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

func newTrash() *cobra.Command {
	return parent("trash", "Volumes that were deleted and are still kept",
		`Volumes that were deleted and are still kept.

A claim of a StorageClass with onDelete: trash leaves its volume in the trash of
its pool for the class's trashRetention. Until then it can be brought back with
all its data, or its space be freed at once.`,
		newTrashList(), newTrashRestore(), newTrashPurge())
}

func newTrashList() *cobra.Command {
	return volumeList{
		which: (*rescue.Rescuer).Trashed, none: "The trash is empty.",
		column: "FREED", cell: func(v *v1alpha1.Volume) string {
			if v.Status.ExpiresAt == nil {
				return ""
			}
			return left(v.Status.ExpiresAt.Time)
		},
	}.command(&cobra.Command{
		Short: "List the volumes in the trash",
		Long: "List the volumes in the trash, with the claim each was for and when its space " +
			"will be freed.",
		Example: `  kubectl quarry trash list
  kubectl quarry trash list -n shop -o json`,
	})
}

func newTrashRestore() *cobra.Command {
	var o restoring
	cmd := &cobra.Command{
		Use: "restore VOLUME", Short: "Bring a volume back from the trash",
		Long: `Bring a volume back from the trash: its data, its PersistentVolume under the
same name, and its claim.

What you will see: once its node's agent has the volume back, its
PersistentVolume appears for the old claim, then the claim with its old class,
size and labels, and the two are Bound. If a claim of that name exists and
waits, it gets the volume. If one is bound to something else, nothing is done:
delete that claim first, or give another one by --claim. A second run goes on
where the first stopped.`,
		Example: `  kubectl quarry trash restore pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1
  kubectl quarry trash restore pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1 --claim shop/data-copy`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, args[0], v1alpha1.DesiredTrashed)
		},
	}
	o.flags(cmd.Flags())

	return cmd
}

// restoring are the flags of both restore commands.
type restoring struct {
	to      cluster
	claim   string
	noClaim bool
	any     bool
	timeout time.Duration
}

func (o *restoring) flags(f *pflag.FlagSet) {
	o.to.flags(f)
	f.StringVar(&o.claim, "claim", "", "NAMESPACE/NAME of another claim to bring it back for")
	f.BoolVar(&o.noClaim, "no-claim", false,
		"do not make the claim; the PersistentVolume waits for it")
	f.BoolVar(&o.any, "available", false,
		"offer the volume to any claim that fits, not to the old one")
	f.DurationVar(&o.timeout, "timeout", rescue.DefaultPatience,
		"how long to wait for the node's agent, and for the claim to be bound")
}

// run restores a volume. from is the state in which the command expects it;
// Present is fine as well, since an earlier run may have come as far.
func (o *restoring) run(cmd *cobra.Command, id string, from v1alpha1.DesiredState) error {
	if o.claim != "" && o.any {
		return errors.New("--claim and --available exclude each other")
	}

	options := rescue.RestoreOptions{NoClaim: o.noClaim, Any: o.any}
	if o.claim != "" {
		ref, err := parseClaim(o.claim)
		if err != nil {
			return err
		}
		options.Claim = ref
	}

	r, err := o.to.rescuer()
	if err != nil {
		return err
	}
	if from == v1alpha1.DesiredPresent {
		if err := notInTrash(cmd, r, id); err != nil {
			return err
		}
	}

	r.Patience = o.timeout
	sayTo(cmd, r)
	return r.Restore(cmd.Context(), id, options)
}

// notInTrash keeps the commands for orphans away from volumes that somebody
// deleted.
func notInTrash(cmd *cobra.Command, r *rescue.Rescuer, id string) error {
	all, err := r.Trashed(cmd.Context())
	if err != nil {
		return err
	}

	for i := range all {
		if all[i].Name == id {
			return fmt.Errorf("volume %s is in the trash: `kubectl quarry trash` handles it", id)
		}
	}

	return nil
}

func newTrashPurge() *cobra.Command {
	var (
		to      cluster
		yes     bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use: "purge VOLUME", Short: "Free the space of a volume in the trash now",
		Long:    "Free the space of a volume in the trash now. There is no way back.",
		Example: `  kubectl quarry trash purge pvc-0f6b1c5e-8a9f-4d51-9f0c-1d2a5a1f7c11-1 --yes`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := to.rescuer()
			if err != nil {
				return err
			}

			all, err := r.Trashed(cmd.Context())
			if err != nil {
				return err
			}

			return deleteOne(cmd, r, all, args[0], "in the trash", yes, timeout)
		},
	}
	to.flags(cmd.Flags())
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().DurationVar(&timeout, "timeout", rescue.DefaultPatience,
		"how long to wait for the node's agent")

	return cmd
}

// deleteOne deletes one of the listed volumes for good, once that is confirmed.
func deleteOne(cmd *cobra.Command, r *rescue.Rescuer, listed []v1alpha1.Volume, id, where string,
	yes bool, timeout time.Duration) error {
	for i := range listed {
		v := &listed[i]
		if v.Name != id {
			continue
		}

		claim := "no claim"
		if c := v.Spec.Claim; c != nil {
			claim = "claim " + c.Namespace + "/" + c.Name
		}

		if err := confirm(cmd, yes, "Delete volume %s (%s, %s, on node %s) for good?", id, claim,
			v.Spec.Capacity.String(), v.Spec.NodeName); err != nil {
			return err
		}

		r.Patience = timeout
		sayTo(cmd, r)
		return r.Delete(cmd.Context(), id)
	}

	return fmt.Errorf("volume %s is not %s", id, where)
}

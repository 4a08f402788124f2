package nodeagent

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// VerifyObjects compares the node's Volume objects with what is on its disks.
// It needs a reader past any cache, and changes nothing; what differs is for a
// person, or for the controller, to put right. Of a volume that is in unread,
// by pool and id, or in a pool that is there as a whole (with the id ""), it is
// not said that it is gone.
func VerifyObjects(ctx context.Context, reader client.Reader, node string, disk []store.Volume,
	unread map[[2]string]bool) ([]verify.Finding, error) {
	var list v1alpha1.VolumeList
	if err := reader.List(ctx, &list, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return nil, fmt.Errorf("list the volumes of %s: %w", node, err)
	}

	onDisk := map[string]*store.Volume{}
	for i := range disk {
		onDisk[disk[i].ID] = &disk[i]
	}

	var findings []verify.Finding
	find := func(severity verify.Severity, pool, volume, format string, args ...any) {
		findings = append(findings, verify.Finding{Severity: severity, Pool: pool, Volume: volume,
			What: fmt.Sprintf(format, args...)})
	}
	for i := range list.Items {
		o := &list.Items[i]
		there := onDisk[o.Name]
		delete(onDisk, o.Name)
		ready := o.Status.Phase == v1alpha1.VolumeReady &&
			o.Spec.DesiredState == v1alpha1.DesiredPresent
		switch {
		case there == nil && ready && (unread[[2]string{o.Status.Pool, ""}] ||
			unread[[2]string{o.Status.Pool, o.Name}]):
			find(verify.SeverityNote, o.Status.Pool, o.Name,
				"its Volume object says Ready, and whether it is on disk could not be looked at")
		case there == nil && ready:
			find(verify.SeverityError, o.Status.Pool, o.Name,
				"its Volume object says Ready, and it is not on disk")
		case there == nil:
		case o.Status.Phase == v1alpha1.VolumeDeleted:
			find(verify.SeverityError, there.Pool, o.Name,
				"its Volume object says Deleted, and it is on disk")
		case ready && o.Status.Path != there.Path:
			find(verify.SeverityError, there.Pool, o.Name,
				"its Volume object says it is at %s, and it is at %s", o.Status.Path, there.Path)
		case ready && o.Status.Capacity != nil && o.Status.Capacity.Value() != there.SizeBytes &&
			there.GrowingTo == 0:
			find(verify.SeverityWarning, there.Pool, o.Name,
				"its Volume object says %d bytes, and it has %d", o.Status.Capacity.Value(),
				there.SizeBytes)
		}
	}

	for id, v := range onDisk {
		find(verify.SeverityWarning, v.Pool, id,
			"no Volume object speaks of it; it is kept (claim %s/%s)", v.Origin.ClaimNamespace,
			v.Origin.ClaimName)
	}

	return findings, nil
}

package standalone

import (
	"context"
	"strings"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// separator is in no volume's id, and in no node's name.
const separator = "@"

// IDs are the ids that callers know volumes by: <id>@<node>. Orchestrators have
// one controller for all machines, and take its word for it that a volume is
// gone; with the node in the id a machine can tell that a volume is another
// one's. The node is the one that the volume was made on, also after its disk
// moved, so an id never changes. An id without a node is a volume's own.
type IDs struct {
	Store *store.Store
	// Node is what this machine is called.
	Node string
}

// Given is the id that callers are given for a volume.
func (i *IDs) Given(id string) string {
	home := i.Node
	if v, err := i.Store.Get(id); err == nil && v.Origin.Node != "" {
		home = v.Origin.Node
	}
	return id + separator + home
}

// Own is the id of the volume that a caller means. Another machine's is an
// error with ReasonNotOurs; with cleanup set only where a volume here has its
// id.
func (i *IDs) Own(ctx context.Context, given string, cleanup bool) (string, error) {
	id, node, says := strings.Cut(given, separator)
	if !says || !v1alpha1.IsVolumeID(id) {
		return given, nil
	}

	home := i.Node
	v, err := i.Store.Find(ctx, id)
	if err == nil && v.Origin.Node != "" {
		home = v.Origin.Node
	}

	switch {
	case node == home:
		return id, nil
	case err != nil && cleanup:
		return id, nil
	case err == nil:
		return "", translate.Errorf(v1alpha1.ReasonNotOurs,
			"volume %s was made on node %s, and the one of that name here on node %s", id,
			node, home)
	}
	return "", translate.Errorf(v1alpha1.ReasonNotOurs,
		"volume %s was made on node %s, and this is node %s, which does not have its "+
			"disk: ask there",
		id, node, i.Node)
}

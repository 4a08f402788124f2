package csi

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// tokenMark begins every token, so that what is none of ours is told from an
// id.
const tokenMark = "after:"

// pageSize is the number of entries where the caller gives no maximum; a
// thousand fit into a message many times over.
const pageSize = 1000

// ListVolumes implements the RPC. Volumes are in the order of their ids, and a
// token is the last id that was given: volumes that come and go between two
// pages neither repeat nor hide another one, and no page is kept in memory for
// a caller.
func (c *Controller) ListVolumes(
	ctx context.Context,
	req *spec.ListVolumesRequest,
) (*spec.ListVolumesResponse, error) {
	size := int(req.GetMaxEntries())
	switch {
	case size < 0:
		return nil, invalid("max_entries %d is negative", size)
	case size == 0 || size > pageSize:
		size = pageSize
	}

	after, err := readToken(req.GetStartingToken())
	if err != nil {
		return nil, err
	}

	volumes, err := c.Catalogue.List(ctx)
	if err != nil {
		return nil, toStatus(err)
	}

	slices.SortFunc(
		volumes,
		func(a, b v1alpha1.Volume) int { return strings.Compare(a.Name, b.Name) },
	)
	first, _ := slices.BinarySearchFunc(volumes, after, func(v v1alpha1.Volume, id string) int {
		if v.Name <= id {
			return -1
		}
		return 1
	})
	page := volumes[first:]
	resp := &spec.ListVolumesResponse{}
	if len(page) > size {
		page = page[:size]
		resp.NextToken = writeToken(page[size-1].Name)
	}

	for i := range page {
		resp.Entries = append(resp.Entries, &spec.ListVolumesResponse_Entry{
			Volume: message(&page[i], ""), Status: &spec.ListVolumesResponse_VolumeStatus{},
		})
	}

	return resp, nil
}

func writeToken(id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenMark + id))
}

// readToken is the inverse; ABORTED makes the caller begin anew (spec,
// ListVolumes).
func readToken(token string) (string, error) {
	if token == "" {
		return "", nil
	}

	text, err := base64.RawURLEncoding.DecodeString(token)
	id, ours := strings.CutPrefix(string(text), tokenMark)
	if possible, _ := checkID(id); err != nil || !ours || !possible {
		return "", status.Errorf(codes.Aborted,
			"starting_token %s is not one that was given", quote(token))
	}

	return id, nil
}

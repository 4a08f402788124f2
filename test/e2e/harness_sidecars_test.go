package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/quarry-storage/quarry/test/testbed/image"
)

// sidecars are the real ones of Kubernetes' CSI community, by the tags that the
// chart asks for. Their versions are those of the module test/tools, which they
// are built from.
var sidecars = map[string]string{"csi-provisioner": "v6.3.0", "csi-resizer": "v2.3.0"}

// loadSidecars makes the sidecars' images and puts them on every node.
func loadSidecars(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "quarry-sidecars-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, version := range sidecars {
		program, err := cluster.Tool(ctx, name)
		if err != nil {
			return err
		}
		tarball := filepath.Join(dir, name+".tar")
		err = image.Image{
			Tags:       []string{fmt.Sprintf("localhost/sig-storage/%s:%s", name, version)},
			Files:      []image.File{{Path: "/" + name, Source: program, Mode: 0o755}},
			Entrypoint: []string{"/" + name},
		}.WriteFile(tarball)
		if err != nil {
			return err
		}
		if err := cluster.Load(ctx, tarball); err != nil {
			return err
		}
	}
	return nil
}

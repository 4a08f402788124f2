package build

import (
	"context"
	"path/filepath"
)

// Peers makes the provisioners that the benchmarks compare with, everything on
// the tool lines of peers/go.mod, and returns their directory. They are a
// module of their own, so that each is built with what it asks for itself.
func (c *Cache) Peers(ctx context.Context) (string, error) {
	module := filepath.Join(c.Source, "peers")
	return c.get(ctx, artifact{
		name: "peers", what: "the provisioners that are compared with: 1 to 2 minutes",
		key: newKey(linkFlags).files(module, "go.mod", "go.sum"),
		make: func(ctx context.Context, dir string) error {
			return c.goBuild(ctx, module, linkFlags, dir+"/", "tool")
		},
	})
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/csi/registration"
	"github.com/quarry-storage/quarry/nodeagent/publish"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/provisioner"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// serveController serves the CSI controller service to the sidecars beside this
// replica, until ctx ends.
func serveController(ctx context.Context, endpoint string, door *provisioner.CSI) error {
	server := &csi.Server{
		Identity:   &csi.Identity{Version: version},
		Controller: &csi.Controller{Volumes: door, Catalogue: door, Parameters: parameters.Apply},
	}
	return server.ListenAndServe(ctx, endpoint)
}

// csiNode are the agent's flags of the CSI node service.
type csiNode struct {
	endpoint, registrationDir string
	inline                    bool
	maxVolumes                int64
}

func (o *csiNode) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "csi-endpoint", "",
		"the unix socket that the CSI node service is served at (empty: it is not)")
	f.StringVar(&o.registrationDir, "registration-dir", "",
		"kubelet's directory plugins_registry, where the node service is made known "+
			"(empty: it is not)")
	f.BoolVar(&o.inline, "inline-volumes", false, "make the inline CSI volumes that pods ask for")
	f.Int64Var(&o.maxVolumes, "csi-max-volumes", 0,
		"how many CSI volumes may be published on the node (0: no limit)")
}

// serve serves the node service, and kubelet's registration of it, once the
// volumes are up, until ctx ends. It needs no API server.
func (o *csiNode) serve(ctx context.Context, node string, disks *store.Store, up <-chan struct{},
	log *slog.Logger) error {
	if o.endpoint == "" {
		return nil
	}

	path, err := csi.SocketPath(o.endpoint)
	if err != nil {
		return fmt.Errorf("--csi-endpoint: %w", err)
	}

	select {
	case <-up:
	case <-ctx.Done():
		return nil
	}

	publisher := &publish.Publisher{Store: disks}
	if err := publisher.Sweep(ctx); err != nil {
		log.WarnContext(ctx, "take away what a crash left", "error", err)
	}

	server := &csi.Server{
		Identity: &csi.Identity{Version: version},
		Node: &csi.Node{Name: node, Volumes: publisher, MaxVolumes: o.maxVolumes,
			Parameters: parameters.Apply},
		Log: log,
	}
	if o.inline {
		server.Node.Inline = &publish.Inline{Store: disks}
	}

	listener, err := csi.Listen(path)
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(ctx, listener) })
	if o.registrationDir != "" {
		registrar := &registration.Server{Driver: v1alpha1.CSIDriver, Endpoint: path, Log: log}
		socket, err := csi.Listen(filepath.Join(o.registrationDir,
			registration.SocketName(v1alpha1.CSIDriver)))
		if err != nil {
			listener.Close()
			return err
		}

		group.Go(func() error { return registrar.Serve(ctx, socket) })
	}

	return group.Wait()
}

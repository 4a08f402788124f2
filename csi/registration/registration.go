// Package registration makes a node service known to kubelet, as
// node-driver-registrar does for drivers that are not compiled with it. kubelet
// watches a directory for sockets, asks at each who is there, and from then on
// speaks to the endpoint that it was told
// (kubelet/pkg/apis/pluginregistration/v1; "Registering a driver on a node" in
// the CSI developer documentation).
package registration

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// SocketName is the file in kubelet's directory plugins_registry (below
// /var/lib/kubelet on most machines).
func SocketName(driver string) string { return driver + "-reg.sock" }

// Server answers kubelet. It is registered as long as it serves: kubelet
// forgets the driver when the socket goes away, and asks again, with growing
// delays, when a registration failed.
type Server struct {
	registerapi.UnimplementedRegistrationServer
	// Driver is the CSI driver's name.
	Driver string
	// Endpoint is the path of the node service's socket, as kubelet sees it.
	Endpoint string
	// Log is told what kubelet thinks of it. Nil: slog.Default.
	Log *slog.Logger

	registered atomic.Bool
}

// Serve answers kubelet at the listener until ctx ends, and closes it. It
// returns nil then. The node service must be answering already: kubelet asks it
// who it is before it confirms the registration.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 10))
	registerapi.RegisterRegistrationServer(g, s)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()

	err := g.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) || ctx.Err() != nil {
		return nil
	}

	return err
}

// Registered reports whether kubelet has confirmed the registration last.
func (s *Server) Registered() bool { return s.registered.Load() }

// GetInfo implements the RPC.
func (s *Server) GetInfo(
	context.Context,
	*registerapi.InfoRequest,
) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:     registerapi.CSIPlugin,
		Name:     s.Driver,
		Endpoint: s.Endpoint,
		// Of the CSI protocol: kubelet compares the major number.
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus implements the RPC.
func (s *Server) NotifyRegistrationStatus(
	ctx context.Context,
	status *registerapi.RegistrationStatus,
) (*registerapi.RegistrationStatusResponse, error) {
	s.registered.Store(status.GetPluginRegistered())
	log := s.Log
	if log == nil {
		log = slog.Default()
	}

	if status.GetPluginRegistered() {
		log.InfoContext(ctx, "kubelet registered the CSI driver", "driver", s.Driver)
	} else {
		log.WarnContext(
			ctx,
			"kubelet did not register the CSI driver and will try again",
			"driver",
			s.Driver,
			"error",
			status.GetError(),
		)
	}

	return &registerapi.RegistrationStatusResponse{}, nil
}

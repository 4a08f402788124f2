package csi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

const (
	// maxMessage bounds what a caller may send in one message, in bytes:
	// several times what the spec's limits add up to.
	maxMessage = 1 << 20
	// drain is how long calls in flight may go on when the server stops. What
	// they leave undone is repeated by the caller.
	drain = 3 * time.Second
)

// Server serves the services that are set.
type Server struct {
	Identity   *Identity
	Controller *Controller
	Node       *Node
	// IDs are the ids that callers know volumes by. Nil: the volumes' own.
	IDs IDs
	// Log receives one line for each call. Nil: slog.Default.
	Log *slog.Logger
}

// ListenAndServe serves at a unix socket until ctx ends. Endpoint is
// unix:///path, or the path.
func (s *Server) ListenAndServe(ctx context.Context, endpoint string) error {
	l, err := Listen(endpoint)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Serve serves at the listener until ctx ends, and closes it. It returns nil
// then.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	log := s.Log
	if log == nil {
		log = slog.Default()
	}

	g := grpc.NewServer(chain(log, s.IDs), grpc.MaxRecvMsgSize(maxMessage))
	if s.Identity != nil {
		spec.RegisterIdentityServer(g, s.Identity)
	}
	if s.Controller != nil {
		spec.RegisterControllerServer(g, s.Controller)
	}
	if s.Node != nil {
		spec.RegisterNodeServer(g, s.Node)
	}

	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		force := time.AfterFunc(drain, g.Stop)
		defer force.Stop()
		g.GracefulStop()
	})
	log.InfoContext(ctx, "serving CSI", "address", l.Addr().String())
	err := g.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}

	return err
}

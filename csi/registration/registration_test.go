package registration_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/csi/registration"
)

// kubelet finds the socket in its directory, asks who is there, and says what
// became of it; when the agent ends, the socket goes, by which kubelet knows
// that the driver has gone.
func TestRegistration(t *testing.T) {
	dir, err := os.MkdirTemp("", "reg") // shorter than the test's own, for the socket's name
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, registration.SocketName("csi.quarry.storage"))
	l, err := csi.Listen(path)
	require.NoError(t, err)
	s := &registration.Server{Driver: "csi.quarry.storage",
		Endpoint: "/var/lib/kubelet/plugins/csi.quarry.storage/csi.sock", Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()

	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	kubelet := registerapi.NewRegistrationClient(conn)
	info, err := kubelet.GetInfo(t.Context(), &registerapi.InfoRequest{})
	require.NoError(t, err)
	require.Equal(t, registerapi.CSIPlugin, info.GetType())
	require.Equal(t, "csi.quarry.storage", info.GetName())
	require.Equal(t, s.Endpoint, info.GetEndpoint())
	require.NotEmpty(t, info.GetSupportedVersions())

	require.False(t, s.Registered())
	_, err = kubelet.NotifyRegistrationStatus(t.Context(), &registerapi.RegistrationStatus{PluginRegistered: true})
	require.NoError(t, err)
	require.True(t, s.Registered())
	_, err = kubelet.NotifyRegistrationStatus(t.Context(), &registerapi.RegistrationStatus{Error: "no such socket"})
	require.NoError(t, err)
	require.False(t, s.Registered())

	cancel()
	require.NoError(t, <-done)
	require.NoFileExists(t, path)
}

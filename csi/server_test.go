package csi_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/csi"
)

// Nothing that may be secret reaches the log, whatever becomes of the call.
func TestLogKeepsSecrets(t *testing.T) {
	d := newDriver(t, nil)
	const secret = "hunter2"
	m := map[string]string{"password": secret, secret: "x"}
	c := &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: multiWriter},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}}}
	ctx := t.Context()
	_, err := d.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: "v", Secrets: m,
		VolumeCapabilities: []*spec.VolumeCapability{c}})
	require.Error(t, err)
	_, err = d.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: "v", Secrets: m})
	require.NoError(t, err)
	_, err = d.ControllerExpandVolume(ctx, &spec.ControllerExpandVolumeRequest{VolumeId: "v", Secrets: m})
	require.Error(t, err)
	_, err = d.ValidateVolumeCapabilities(ctx, &spec.ValidateVolumeCapabilitiesRequest{VolumeId: "v", Secrets: m,
		VolumeContext: m, VolumeCapabilities: []*spec.VolumeCapability{c}})
	require.Error(t, err)
	_, err = d.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: "/s", Secrets: m,
		VolumeContext: m, PublishContext: m, VolumeCapability: c})
	require.Error(t, err)
	_, err = d.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{VolumeId: "v", StagingTargetPath: "/s",
		TargetPath: "/t", Secrets: m, VolumeContext: m, PublishContext: m, VolumeCapability: c})
	require.Error(t, err)
	log := d.log.String()
	for _, method := range []string{"CreateVolume", "DeleteVolume", "NodeStageVolume", "NodePublishVolume"} {
		require.Contains(t, log, "method="+method)
	}
	require.NotContains(t, log, secret)
	require.NotContains(t, log, "password")
}

// waiting makes volumes once it is told to.
type waiting struct {
	csi.Volumes
	begun, goOn chan struct{}
}

func (w *waiting) Ensure(context.Context, string, v1alpha1.VolumeSpec, []string) (*v1alpha1.Volume, error) {
	w.begun <- struct{}{}
	<-w.goOn
	return &v1alpha1.Volume{}, nil
}

func (w *waiting) Delete(context.Context, string) error { panic("a defect") }

func TestOneOperationAtATime(t *testing.T) {
	w := &waiting{begun: make(chan struct{}), goOn: make(chan struct{})}
	d := newDriver(t, func(s *csi.Server) { s.Controller.Volumes = w })
	create := func(name string) error {
		_, err := d.CreateVolume(context.Background(), &spec.CreateVolumeRequest{Name: name,
			CapacityRange: &spec.CapacityRange{}, VolumeCapabilities: []*spec.VolumeCapability{mountable(multiWriter)}})
		return err
	}
	first := make(chan error, 2)
	go func() { first <- create("a") }()
	<-w.begun
	requireCode(t, codes.Aborted, create("a"), "in flight")
	go func() { first <- create("b") }() // another one's operation is not held up
	<-w.begun
	close(w.goOn)
	require.NoError(t, <-first)
	require.NoError(t, <-first)
	go func() { first <- create("a") }() // it is over, so the name is free again
	<-w.begun
	require.NoError(t, <-first)
}

func TestPanicIsInternal(t *testing.T) {
	d := newDriver(t, func(s *csi.Server) { s.Controller.Volumes = &waiting{} })
	_, err := d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: "v"})
	requireCode(t, codes.Internal, err)
	require.NotContains(t, err.Error(), "goroutine")
	require.Contains(t, d.log.String(), "a defect")
	_, err = d.GetPluginInfo(t.Context(), &spec.GetPluginInfoRequest{})
	require.NoError(t, err)
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "csi.sock")
	l, err := csi.Listen("unix://" + path)
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	st, err = os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())

	_, err = csi.Listen(path)
	require.ErrorContains(t, err, "another process")
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)

	// A socket that a killed process left.
	l, err = csi.Listen(path)
	require.NoError(t, err)
	kept := filepath.Join(dir, "kept")
	require.NoError(t, os.Link(path, kept))
	require.NoError(t, l.Close())
	require.NoError(t, os.Rename(kept, path))
	require.False(t, dialable(path))
	l, err = csi.Listen(path)
	require.NoError(t, err)
	require.True(t, dialable(path))
	require.NoError(t, l.Close())

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("content"), 0o644))
	_, err = csi.Listen(file)
	require.ErrorContains(t, err, "something else")
	require.FileExists(t, file)
	for _, endpoint := range []string{"tcp://0.0.0.0:1", "csi.sock", "", "unix://relative", "unix:///" +
		string(make([]byte, 200))} {
		_, err := csi.Listen(endpoint)
		require.Error(t, err, endpoint)
	}
}

package sanity

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/stretchr/testify/require"
	"github.com/zclconf/go-cty/cty"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// guide returns the HCL files of the guide, each by its first block or attribute.
func guide(t *testing.T) map[string]*hclsyntax.Body {
	t.Helper()
	text, err := os.ReadFile("../../docs/guides/nomad.md")
	require.NoError(t, err)
	files := map[string]*hclsyntax.Body{}
	for i, m := range regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllSubmatch(text, -1) {
		file, problems := hclsyntax.ParseConfig(m[1], fmt.Sprintf("nomad.md, file %d", i+1), hcl.InitialPos)
		require.False(t, problems.HasErrors(), "%s", problems)
		body := file.Body.(*hclsyntax.Body)
		switch {
		case body.Attributes["capacity_min"] != nil:
			files["volume"] = body
		case body.Attributes["data_dir"] != nil:
			files["client"] = body
		default:
			job := block(t, body, "job")
			files[job.Labels[0]] = job.Body
		}
	}
	require.Len(t, files, 4)
	return files
}

// block is the first block of a type, however deep.
func block(t *testing.T, in *hclsyntax.Body, kind string) *hclsyntax.Block {
	t.Helper()
	found := find(in, kind)
	require.NotNil(t, found, "no block %q", kind)
	return found
}

func find(in *hclsyntax.Body, kind string) *hclsyntax.Block {
	for _, b := range in.Blocks {
		if b.Type == kind {
			return b
		}
		if inner := find(b.Body, kind); inner != nil {
			return inner
		}
	}
	return nil
}

// value evaluates an attribute as Nomad does for the machine node1.
func value(t *testing.T, in *hclsyntax.Body, name string) cty.Value {
	t.Helper()
	require.Contains(t, in.Attributes, name)
	v, problems := in.Attributes[name].Expr.Value(&hcl.EvalContext{Variables: map[string]cty.Value{
		"var": cty.ObjectVal(map[string]cty.Value{"node": cty.StringVal("node1")}),
		"node": cty.ObjectVal(map[string]cty.Value{
			"unique": cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal("node1")}),
		}),
	}})
	require.False(t, problems.HasErrors(), "%s: %s", name, problems)
	return v
}

func text(t *testing.T, in *hclsyntax.Body, name string) string {
	t.Helper()
	return value(t, in, name).AsString()
}

// TestNomadGuide starts the plugin as the guide's job does and makes the calls
// that Nomad 1.11.3 was seen to make for the guide's volume and the job that uses
// it, in its order and with its paths.
func TestNomadGuide(t *testing.T) {
	requireRoot(t)
	files := guide(t)
	plugin := block(t, files["quarry"], "csi_plugin").Body
	id := text(t, plugin, "id")
	require.Equal(t, id, text(t, files["volume"], "plugin_id"))
	require.Equal(t, "monolith", text(t, plugin, "type"))
	// Nomad does not interpolate this one but for variables of the job.
	dataDir := text(t, files["client"], "data_dir")
	base := text(t, plugin, "stage_publish_base_dir")
	require.Equal(t, dataDir+"/client/csi/monolith/"+id, base)
	require.LessOrEqual(t, len(dataDir), 38)
	uses := block(t, files["app"], "volume").Body
	require.Equal(t, text(t, files["volume"], "id"), text(t, uses, "source"))
	capability := block(t, files["volume"], "capability").Body
	for _, same := range []string{"access_mode", "attachment_mode"} {
		require.Equal(t, text(t, capability, same), text(t, uses, same))
	}
	require.Equal(t, "single-node-writer", text(t, capability, "access_mode"))
	require.NotEmpty(t, find(files["volume"], "mount_options"), "without it Nomad does not grow it in use")

	// The plugin, with the directories that Nomad makes.
	pool, root := newFilesystem(t, "xfs", 24*gib), t.TempDir()
	socket := filepath.Join(scratch, "csi", "plugins", "8a7ad2a4-0c5c-3aa6-1f3a-6f0c3f8b2f55", "csi.sock")
	startPlugin(t, block(t, files["quarry"], "config").Body, pool, socket)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	n := &nomad{t, spec.NewIdentityClient(conn), spec.NewControllerClient(conn), spec.NewNodeClient(conn)}
	n.register()

	volume := files["volume"]
	parameters := map[string]string{}
	for name := range block(t, volume, "parameters").Body.Attributes {
		parameters[name] = text(t, block(t, volume, "parameters").Body, name)
	}
	require.Equal(t, "10GiB", text(t, volume, "capacity_min"))
	made := n.create(text(t, volume, "name"), 10*gib, parameters)
	require.Equal(t, "data@node1", made.GetVolumeId())

	// The job, and another one that uses the same volume: impossible.
	staging := filepath.Join(root, base, "staging", "default", "data", "rw-file-system-single-node-writer")
	first, second := filepath.Join(root, base, "per-alloc", "alloc-1", "data", "rw-file-system-single-node-writer"),
		filepath.Join(root, base, "per-alloc", "alloc-2", "data", "rw-file-system-single-node-writer")
	require.NoError(t, n.claim(made, staging, first))
	info, err := os.Stat(first)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o777), info.Mode().Perm(), "under exec a job is nobody")
	require.NoError(t, os.WriteFile(filepath.Join(first, "dates"), []byte("now\n"), 0o600))
	require.Equal(t, codes.FailedPrecondition.String(), status.Code(n.claim(made, staging, second)).String())

	// Growth in use; deletion in use, which Nomad asks for, is refused.
	grown, err := n.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: made.GetVolumeId(),
		CapacityRange: &spec.CapacityRange{RequiredBytes: 11 * gib}, VolumeCapability: singleNodeWriter()})
	require.NoError(t, err)
	require.False(t, grown.GetNodeExpansionRequired(), "nothing is left for the client")
	require.EqualValues(t, 11*gib, grown.GetCapacityBytes())
	_, err = n.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: made.GetVolumeId()})
	require.Equal(t, codes.FailedPrecondition.String(), status.Code(err).String(), "%v", err)

	// Deregistered, and created again: the same volume with its data.
	n.release(made, staging, first)
	again := n.create("data", 10*gib, parameters)
	require.Equal(t, made.GetVolumeId(), again.GetVolumeId())
	require.NoError(t, n.claim(again, staging, second))
	require.FileExists(t, filepath.Join(second, "dates"))
	n.release(again, staging, second)
	_, err = n.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: made.GetVolumeId()})
	require.NoError(t, err)

	// raw_exec without stage_publish_base_dir: the path is in no namespace.
	other := n.create("other", gib, parameters)
	_, err = n.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{
		VolumeId: other.GetVolumeId(), StagingTargetPath: staging,
		TargetPath: "/local/csi-of-a-test/per-alloc/a/other", VolumeCapability: singleNodeWriter(),
	})
	require.ErrorContains(t, err, "which the caller makes where this process sees it")
	_, err = n.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: other.GetVolumeId()})
	require.NoError(t, err)
}

// startPlugin starts what the guide's job starts, with another pool. Where its
// socket is to be is told by the environment.
func startPlugin(t *testing.T, config *hclsyntax.Body, pool, socket string) {
	t.Helper()
	require.Equal(t, "/usr/local/bin/quarry", text(t, config, "command"))
	var args []string
	for _, v := range value(t, config, "args").AsValueSlice() {
		args = append(args, v.AsString())
	}
	at := slices.Index(args, "/volumes")
	require.Positive(t, at, "%v", args)
	args[at] = pool
	if _, err := os.Stat("/proc/1/root/"); err != nil {
		// This machine is a container: nobody knows what its mount points are.
		args = slices.DeleteFunc(args, func(arg string) bool { return arg == "--require-mountpoint" })
	}
	args = append(args, "--device-dir", filepath.Join(t.TempDir(), "dev"), "--reserve", "0%")

	binary, err := program()
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(socket), 0o700))
	server := exec.Command(binary, args...)
	server.Env = append(os.Environ(), "CSI_ENDPOINT=unix://"+socket)
	var log strings.Builder
	server.Stderr = &log
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		require.NoError(t, server.Process.Signal(os.Interrupt))
		_ = server.Wait() // it was told to end
		if t.Failed() {
			t.Logf("the plugin's log:\n%s", log.String())
		}
	})
}

// nomad makes the calls of a Nomad 1.11.3, as they were recorded.
type nomad struct {
	t *testing.T
	spec.IdentityClient
	spec.ControllerClient
	spec.NodeClient
}

// register is what the client does until a plugin is healthy. The first try
// comes before the socket is there.
func (n *nomad) register() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	_, err := n.Probe(ctx, &spec.ProbeRequest{}, grpc.WaitForReady(true))
	require.NoError(n.t, err)
	info, err := n.GetPluginInfo(ctx, &spec.GetPluginInfoRequest{})
	require.NoError(n.t, err)
	require.Equal(n.t, "csi.quarry.storage", info.GetName())
	plugin, err := n.GetPluginCapabilities(ctx, &spec.GetPluginCapabilitiesRequest{})
	require.NoError(n.t, err)
	require.NotEmpty(n.t, plugin.GetCapabilities())
	node, err := n.NodeGetInfo(ctx, &spec.NodeGetInfoRequest{})
	require.NoError(n.t, err)
	require.Equal(n.t, "node1", node.GetNodeId())
	_, err = n.ControllerGetCapabilities(ctx, &spec.ControllerGetCapabilitiesRequest{})
	require.NoError(n.t, err)
	_, err = n.NodeGetCapabilities(ctx, &spec.NodeGetCapabilitiesRequest{})
	require.NoError(n.t, err)
}

// create is `nomad volume create`. Without a topology_request an empty
// requirement is sent.
func (n *nomad) create(name string, size int64, parameters map[string]string) *spec.Volume {
	n.t.Helper()
	resp, err := n.CreateVolume(n.t.Context(), &spec.CreateVolumeRequest{
		Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*spec.VolumeCapability{singleNodeWriter()},
		Parameters:         parameters, AccessibilityRequirements: &spec.TopologyRequirement{},
	})
	require.NoError(n.t, err)
	return resp.GetVolume()
}

// claim is the start of an allocation: Nomad makes the target's parent.
func (n *nomad) claim(v *spec.Volume, staging, target string) error {
	n.t.Helper()
	require.NoError(n.t, os.MkdirAll(staging, 0o700))
	require.NoError(n.t, os.MkdirAll(filepath.Dir(target), 0o700))
	_, err := n.NodeStageVolume(n.t.Context(), &spec.NodeStageVolumeRequest{
		VolumeId: v.GetVolumeId(), StagingTargetPath: staging,
		VolumeCapability: singleNodeWriter(), VolumeContext: v.GetVolumeContext(),
	})
	require.NoError(n.t, err)
	_, err = n.NodePublishVolume(n.t.Context(), &spec.NodePublishVolumeRequest{
		VolumeId: v.GetVolumeId(), StagingTargetPath: staging, TargetPath: target,
		VolumeCapability: singleNodeWriter(), VolumeContext: v.GetVolumeContext(),
	})
	return err
}

// release is the end of an allocation.
func (n *nomad) release(v *spec.Volume, staging, target string) {
	n.t.Helper()
	id := v.GetVolumeId()
	_, err := n.NodeUnpublishVolume(n.t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	require.NoError(n.t, err)
	_, err = n.NodeUnstageVolume(n.t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
	require.NoError(n.t, err)
}

func singleNodeWriter() *spec.VolumeCapability {
	return &spec.VolumeCapability{
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
	}
}

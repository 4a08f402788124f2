package csi_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// TestGuideByHand makes every call of the guide, in its order and as it stands
// there, but for the paths.
func TestGuideByHand(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, called("node1"), filesystem(t, "xfs", 4*gib))
	page, err := os.ReadFile("../docs/guides/standalone.md")
	require.NoError(t, err)
	calls := regexp.MustCompile(`(?m)^# csi (\w+)/(\w+) +'([^']*)'`).FindAllStringSubmatch(string(page), -1)
	require.Len(t, calls, strings.Count(string(page), "\n# csi "), "each is read")
	require.Greater(t, len(calls), 8)

	var answers []string
	for _, call := range calls {
		service, method, text := call[1], call[2], strings.ReplaceAll(call[3], `"/mnt/`, `"`+d.dir+`/`)
		descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("csi.v1." + service))
		require.NoError(t, err)
		m := descriptor.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
		require.NotNil(t, m, "%s/%s", service, method)
		in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
		require.NoError(t, err)
		out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
		require.NoError(t, err)

		req, resp := in.New().Interface(), out.New().Interface()
		require.NoError(t, protojson.Unmarshal([]byte(text), req), "%s %s", method, text)
		require.NoError(t, d.conn.Invoke(t.Context(), "/csi.v1."+service+"/"+method, req, resp), "%s %s", method, text)
		answers = append(answers, protojson.Format(resp))
	}
	require.Contains(t, answers[0], "data@node1", "the id that the later calls of the guide use")
	require.Empty(t, d.store.List())
}

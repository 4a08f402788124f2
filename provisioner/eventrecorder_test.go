package provisioner

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// said is a recorder that keeps what it is told.
type said struct{ actions, notes []string }

func (s *said) Eventf(_, _ runtime.Object, _, _, action, note string, args ...any) {
	s.actions, s.notes = append(s.actions, action), append(s.notes, args[0].(string))
}

func TestEventRecorder(t *testing.T) {
	s := &said{}
	r := eventRecorder{s}
	for _, n := range []int{3, 3, 4} {
		r.Eventf(&corev1.Node{}, nil, "Warning", "R", "Do", "%d of 100%% nodes", n)
	}
	require.Equal(t, []string{"3 of 100% nodes", "3 of 100% nodes", "4 of 100% nodes"}, s.notes)
	require.Equal(t, s.actions[0], s.actions[1])
	require.NotEqual(t, s.actions[0], s.actions[2], "else the first note would go on being shown")
	require.Less(t, len(s.actions[0]), 128, "the API's limit")

	r.Eventf(&corev1.Node{}, nil, "Warning", "R", "Do", "%s", strings.Repeat("é", 600))
	long := s.notes[3]
	require.LessOrEqual(t, len(long), longestNote)
	require.True(t, utf8.ValidString(long))
	require.True(t, strings.HasSuffix(long, "é…"))
}

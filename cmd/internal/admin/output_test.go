package admin

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/provisioner/rescue"
)

func TestConfirm(t *testing.T) {
	for answer, ok := range map[string]bool{"yes\n": true, "y\n": true, "YES\n": true, "no\n": false, "\n": false,
		"": false, "yes please\n": false} {
		cmd := &cobra.Command{}
		cmd.SetIn(strings.NewReader(answer))
		cmd.SetOut(&bytes.Buffer{})
		err := confirm(cmd, false, "Really?")
		if ok {
			require.NoError(t, err, "%q", answer)
		} else {
			require.ErrorIs(t, err, errNotConfirmed, "%q", answer)
		}
	}
	require.NoError(t, confirm(&cobra.Command{}, true, "Really?"))
}

func TestParseClaim(t *testing.T) {
	ref, err := parseClaim("shop/data")
	require.NoError(t, err)
	require.Equal(t, "shop data", ref.Namespace+" "+ref.Name)
	for _, bad := range []string{"", "data", "/data", "shop/", "a/b/c"} {
		_, err := parseClaim(bad)
		require.Error(t, err, bad)
	}
}

func TestPlanIsPrinted(t *testing.T) {
	snapshot := &rescue.Snapshot{ClusterID: "c", Disks: []rescue.Disk{
		{Node: "a", Volumes: []rescue.Found{{}, {InTrash: true}}}, {Node: "b", Volumes: []rescue.Found{{}}},
	}}
	steps := []rescue.Step{
		{Verb: rescue.Refused, Object: "volume/v1", Node: "a", Claim: "shop/data", Why: "pods\nhold it"},
		{Verb: rescue.Move, Object: "volume/v2", Node: "b", Why: "its disk moved",
			Sees: "the claim is Lost for some seconds"},
	}
	var b bytes.Buffer
	require.NoError(t, printPlan(&b, snapshot, steps))
	require.Equal(t, `Pools read: 2, on 2 nodes; volumes: 2, and 1 in the trash. This is cluster c.

STEP     OBJECT     NODE  CLAIM      WHY
refused  volume/v1  a     shop/data  pods hold it
move     volume/v2  b     -          its disk moved

What will be seen of it:
  volume/v2: the claim is Lost for some seconds
`, b.String())
	require.Equal(t, 1, changes(steps))
	require.ErrorContains(t, undecided(steps), "1 of the lines")
	require.NoError(t, undecided(steps[1:]))

	b.Reset()
	require.NoError(t, printPlan(&b, snapshot, nil))
	require.Equal(t, `Pools read: 2, on 2 nodes; volumes: 2, and 1 in the trash. This is cluster c.

The cluster's objects say what is on disk. There is nothing to do.
`, b.String())
}

func TestLeft(t *testing.T) {
	require.Equal(t, "now", left(time.Now().Add(-time.Hour)))
	require.Equal(t, "in 2h0m", left(time.Now().Add(2*time.Hour+time.Second)))
}

package config_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/config"
)

func load(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Load(strings.NewReader(text))
	require.NoError(t, err)
	return c
}

func TestLoad(t *testing.T) {
	c := load(t, `
pools:
- name: default
  path: /volumes
- name: fast
  path: /mnt/disks/nvme0
  labels: {disk: nvme, quarry.storage/tier: fast}
  reserve: 20Gi
  overcommit: 1.5
  defaultFilesystem: xfs
  requireMountpoint: true
  purgeUnderPressure: true
nodes:
  node4.example:
    pools:
    - {name: default, path: /srv/volumes, reserve: "12.5%"}
  node5:
    pools: []
byClaimIndex: false
heavyJobs: 4
`)
	require.False(t, c.ByClaimIndex)
	require.Equal(t, 4, c.HeavyJobs)

	common := c.PoolsOf("node1")
	require.Len(t, common, 2)
	require.Equal(t, "default", common[0].Name)
	require.Equal(t, config.DefaultReserve, common[0].Reserve.String())
	require.Equal(t, config.DefaultOvercommit, common[0].Overcommit.String())
	require.Equal(t, config.DefaultFilesystem, common[0].DefaultFilesystem)
	require.False(t, common[0].RequireMountpoint)
	fast := common[1]
	require.Equal(t, map[string]string{"disk": "nvme", "quarry.storage/tier": "fast"}, fast.Labels)
	require.Equal(t, int64(20<<30), fast.Reserve.Of(100<<30))
	require.Equal(t, int64(150), fast.Overcommit.Of(100))
	require.Equal(t, "xfs", fast.DefaultFilesystem)
	require.True(t, fast.RequireMountpoint)
	require.True(t, fast.PurgeUnderPressure)

	own := c.PoolsOf("node4.example")
	require.Len(t, own, 1)
	require.Equal(t, "/srv/volumes", own[0].Path)
	require.Equal(t, int64(125), own[0].Reserve.Of(1000))
	require.Equal(t, config.DefaultFilesystem, own[0].DefaultFilesystem, "a node's own pools get the defaults too")
	require.Empty(t, c.PoolsOf("node5"), "an empty list means no pools, not the common ones")
}

func TestLoadNothing(t *testing.T) {
	for _, text := range []string{"", "# only a comment\n", "{}"} {
		c := load(t, text)
		require.Empty(t, c.PoolsOf("any"))
		require.True(t, c.ByClaimIndex)
		require.Equal(t, config.DefaultHeavyJobs, c.HeavyJobs)
	}
}

func TestDefault(t *testing.T) {
	c, err := config.Default("/volumes")
	require.NoError(t, err)
	require.Equal(t, load(t, "pools: [{name: default, path: /volumes}]"), c)
	_, err = config.Default("volumes")
	require.ErrorContains(t, err, "not an absolute path")
}

func TestRefused(t *testing.T) {
	pool := func(more string) string { return "pools: [{name: a, path: /v, " + more + "}]" }
	for _, c := range []struct{ name, text, says string }{
		{"unknown field", "pool: []", `line 1: pool: no such field; did you mean "pools"?`},
		{"unknown field deep", "pools:\n- name: a\n  path: /v\n  requireMountPoints: true\n",
			`line 4: pools[0].requireMountPoints: no such field; did you mean "requireMountpoint"?`},
		{"unknown field of a node", "nodes: {n: {pols: []}}", `nodes.n.pols: no such field; did you mean "pools"?`},
		{"nothing near", "telemetry: on", "telemetry: no such field (known: byClaimIndex"},
		{"twice", "heavyJobs: 1\nheavyJobs: 2\n", "already defined"},
		{"two documents", "heavyJobs: 1\n---\nheavyJobs: 2\n", "one YAML document"},
		{"alias", "pools: &p []\nnodes: {n: {pools: *p}}", "aliases are not allowed"},
		{"not a mapping", "- a", "cannot unmarshal"},
		{"wrong kind", "pools: yes", "cannot unmarshal"},
		{"no YAML", "pools: [", "did not find"},
		{"no name", "pools: [{path: /v}]", "pools[0].name"},
		{"dot in the name", "pools: [{name: a.b, path: /v}]", "pools[0].name"},
		{"no path", "pools: [{name: a}]", "pools[0].path: is required"},
		{"relative", "pools: [{name: a, path: v}]", "not an absolute path"},
		{"dotdot", "pools: [{name: a, path: /v/../etc}]", "not an absolute path"},
		{"root", "pools: [{name: a, path: /}]", "root directory"},
		{"kubelet's", "pools: [{name: a, path: /var/lib/kubelet/pods}]", "/var/lib/kubelet is not for volumes"},
		{"around kubelet's", "pools: [{name: a, path: /var/lib}]", "is not for volumes"},
		{"gone at boot", "pools: [{name: a, path: /run/quarry}]", "is not for volumes"},
		{"same name", "pools: [{name: a, path: /v}, {name: a, path: /w}]", "is the name of pools[0] too"},
		{"same path", "pools: [{name: a, path: /v}, {name: b, path: /v}]", "one is in the other"},
		{"nested", "pools: [{name: a, path: /v/w}, {name: b, path: /v}]", "one is in the other"},
		{"reserve", pool("reserve: lots"), "neither a percentage"},
		{"reserve all", pool("reserve: 100%"), "0% to 90%"},
		{"reserve negative", pool("reserve: -1Gi"), "0 or more"},
		{"reserve fraction of a byte", pool("reserve: 1m"), "whole number"},
		{"reserve list", pool("reserve: [1]"), "a number is expected"},
		{"overcommit below one", pool("overcommit: 0.5"), "1.0 to 100"},
		{"overcommit word", pool("overcommit: .inf"), "1.0 to 100"},
		{"filesystem", pool("defaultFilesystem: ntfs"), `"ntfs" is not one of btrfs, ext4, xfs`},
		{"label key", pool("labels: {'a b': c}"), `key "a b"`},
		{"label value", pool("labels: {a: 'b c'}"), `value "b c" of a`},
		{"node name", "nodes: {Node_1: {}}", "not a node's name"},
		{"jobs", "heavyJobs: -1", "heavyJobs: -1"},
		{"many jobs", "heavyJobs: 1000", "from 1 to 64"},
		{"too large", strings.Repeat("#\n", 1<<19) + "#", "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.Load(strings.NewReader(c.text))
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestSiblingsAreNotNested(t *testing.T) {
	require.Len(t, load(t, "pools: [{name: a, path: /v}, {name: b, path: /v2}]").PoolsOf("n"), 2)
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := config.Load(strings.NewReader("pools: [{name: A, path: v}]\nheavyJobs: 99"))
	for _, field := range []string{"pools[0].name", "pools[0].path", "heavyJobs"} {
		require.ErrorContains(t, err, field)
	}
	var field *config.FieldError
	require.True(t, errors.As(err, &field))
}

func TestReserve(t *testing.T) {
	for _, c := range []struct {
		text       string
		size, want int64
	}{
		{"10%", 1000, 100},
		{"10%", 1001, 101}, // rounded up
		{"0%", 1000, 0},
		{"0", 1000, 0},
		{"0.0001%", 1_000_000, 1},
		{"90%", math.MaxInt64, 8301034833169298227},
		{"1Ki", 1 << 20, 1024},
		{"1Gi", 1 << 20, 1 << 20}, // never more than there is
		{"12345", 1 << 20, 12345},
	} {
		r, err := config.ParseReserve(c.text)
		require.NoError(t, err, c.text)
		require.Equal(t, c.want, r.Of(c.size), "%s of %d", c.text, c.size)
	}
}

func TestOvercommit(t *testing.T) {
	for _, c := range []struct {
		text       string
		size, want int64
	}{
		{"1", 1001, 1001},
		{"1.0", math.MaxInt64, math.MaxInt64},
		{"1.5", 1001, 1501}, // rounded down
		{"2.000001", 1_000_000, 2_000_001},
		{"100", math.MaxInt64, math.MaxInt64}, // held at the largest number, no overflow
		{"3", 0, 0},
	} {
		o, err := config.ParseOvercommit(c.text)
		require.NoError(t, err, c.text)
		require.Equal(t, c.want, o.Of(c.size), "%s of %d", c.text, c.size)
	}
	for _, bad := range []string{"", "1.", ".5", "1e3", "-2", "1.0000001", "101", "0x2"} {
		_, err := config.ParseOvercommit(bad)
		require.Error(t, err, bad)
	}
}

// FuzzLoad: whatever the file holds, Load answers, and what it accepts is
// sound.
func FuzzLoad(f *testing.F) {
	f.Add("pools: [{name: a, path: /v, reserve: 10%, overcommit: 2}]\nnodes: {n: {pools: []}}")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Load(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, p := range c.Pools {
			require.True(t, strings.HasPrefix(p.Path, "/"))
			require.NotContains(t, strings.Split(p.Path, "/"), "..")
			require.NotEmpty(t, p.Name)
			require.LessOrEqual(t, p.Reserve.Of(1<<40), int64(1<<40))
		}
	})
}

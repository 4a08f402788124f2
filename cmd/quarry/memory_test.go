package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContainerLimit(t *testing.T) {
	write := func(path, text string) string {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	for name, test := range map[string]struct {
		membership string
		limits     map[string]string
		want       int64
	}{
		"a container that sees its own group as the root": {"0::/\n",
			map[string]string{"": "536870912\n"}, 536870912},
		"no limit":          {"0::/\n", map[string]string{"": "max\n"}, 0},
		"no control groups": {"", nil, 0},
		"the host's path, the pod's is lower": {"0::/kubepods/pod1/c\n",
			map[string]string{"kubepods/pod1/c": "max\n", "kubepods/pod1": "100\n",
				"kubepods": "4096\n"}, 100},
		"version 1 beside version 2": {"3:memory:/x\n0::/y\n",
			map[string]string{"y": "77\n", "x": "1\n"}, 77},
		"not a number": {"0::/\n", map[string]string{"": "many\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			membership := write(filepath.Join(dir, "cgroup"), test.membership)
			for group, limit := range test.limits {
				write(filepath.Join(dir, "fs", group, "memory.max"), limit)
			}
			require.Equal(t, test.want, containerLimit(membership, filepath.Join(dir, "fs")))
		})
	}
}

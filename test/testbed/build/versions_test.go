package build

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
)

// different are modules whose versions may differ: few packages of them are
// compiled, and nothing is built on top.
var different = map[string]bool{
	"github.com/miekg/dns":                true, // only parts of controller-runtime's tests name it
	"github.com/golang/groupcache":        true,
	"sigs.k8s.io/controller-tools":        true,
	"github.com/quarry-storage/quarry":    true,
	"k8s.io/kubernetes":                   true,
	"github.com/containerd/containerd/v2": true,
}

// A package is compiled again for every version of it, and of anything below
// it. With one version everywhere, what Quarry itself needs of Kubernetes'
// libraries is there already when the testbed's Kubernetes is built.
func TestModulesShareVersions(t *testing.T) {
	source, err := SourceDir()
	require.NoError(t, err)
	versions := map[string]string{} // by module: version, in the first go.mod that has it
	origin := map[string]string{}

	for _, dir := range []string{"..", ".", "kube", "containerd"} {
		file := filepath.Join(source, dir, "go.mod")
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		parsed, err := modfile.Parse(file, content, nil)
		require.NoError(t, err)

		for _, module := range effective(parsed) {
			if different[module.Path] {
				continue
			}
			if first, ok := versions[module.Path]; ok {
				require.Equal(t, first, module.Version,
					"%s in %s and in %s: run `go get %s@VERSION` and `go mod tidy` in the older one",
					module.Path, origin[module.Path], file, module.Path)
				continue
			}
			versions[module.Path], origin[module.Path] = module.Version, file
		}
	}
}

type moduleVersionPair struct{ Path, Version string }

// effective are the modules of a go.mod with what their replacements say.
func effective(file *modfile.File) []moduleVersionPair {
	replaced := map[string]string{}
	for _, r := range file.Replace {
		if r.New.Path == r.Old.Path {
			replaced[r.Old.Path] = r.New.Version
		}
	}
	var all []moduleVersionPair
	for _, r := range file.Require {
		version := r.Mod.Version
		if v, ok := replaced[r.Mod.Path]; ok {
			version = v
		}
		all = append(all, moduleVersionPair{r.Mod.Path, version})
	}
	return all
}

func TestToolsAreThoseOfTheirModules(t *testing.T) {
	source, err := SourceDir()
	require.NoError(t, err)
	known := map[string][]string{}
	for name, tool := range tools {
		require.Equal(t, name, filepath.Base(tool.pkg), "%s is called by its package's name", tool.pkg)
		known[tool.module] = append(known[tool.module], tool.pkg)
	}

	for module, packages := range known {
		file := filepath.Join(source, module, "go.mod")
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		parsed, err := modfile.Parse(file, content, nil)
		require.NoError(t, err)
		var named []string
		for _, tool := range parsed.Tool {
			named = append(named, tool.Path)
		}
		require.ElementsMatch(t, named, packages)
	}
}

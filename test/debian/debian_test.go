package debian

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMissingNamesEachPackageOnce(t *testing.T) {
	require.Equal(t, []string{"first", "second"}, Missing([]Need{
		{Program: "no-such-program", Package: "first"},
		{Program: "sh", Package: "here"},
		{Program: "/no/such/file", Package: "first"},
		{Program: "no-such-program-either", Package: "second"},
	}))
}

func TestADynamicProgramIsNotAStaticOne(t *testing.T) {
	require.Equal(t, []string{"static-sh"}, Missing([]Need{{Program: "sh", Package: "static-sh", Static: true}}))
	static := filepath.Join(t.TempDir(), "static")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", static, "../cmd/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Empty(t, Missing([]Need{{Program: static, Package: "static", Static: true}}))
	require.NotEmpty(t, Missing([]Need{{Program: filepath.Join(t.TempDir(), "none"), Package: "none", Static: true}}))
}

func TestNothingMissingIsNothingToDo(t *testing.T) {
	t.Setenv("PATH", "") // there is no apt-get to be started
	require.NoError(t, Install(t.Context(), t.Logf, []Need{{Program: "/proc/self/exe", Package: "self"}}))
	require.ErrorContains(t, Install(t.Context(), t.Logf, []Need{{Program: "/none", Package: "some-package"}}),
		"some-package")
}

// What the sources call, some target has to install; the machine the tests run
// on may just happen to have it.
func TestEveryProgramThatIsCalledIsInstalled(t *testing.T) {
	calls, err := Calls("../..")
	require.NoError(t, err)
	require.Contains(t, calls, "losetup", "the sources are read")
	installed := map[string]bool{"go": true, "git": true, "make": true, "apt-get": true}
	for _, program := range Essential {
		installed[program] = true
	}
	for _, set := range Sets {
		for _, need := range set {
			installed[need.Program] = true
		}
	}

	for program, files := range calls {
		if strings.HasPrefix(program, "/proc/") {
			continue // the test itself, in another process
		}
		require.True(t, installed[program], "%s is called by %v and by no set of package debian: add it there "+
			"with its package", program, files)
	}
}

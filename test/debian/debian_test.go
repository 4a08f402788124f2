package debian

import (
	"os"
	"os/exec"
	"path/filepath"
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
	require.ErrorContains(t, Install(t.Context(), t.Logf, []Need{{Program: "/none", Package: "some-package"}}), "some-package")
}

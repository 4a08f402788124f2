package show

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersion(t *testing.T) {
	printed := func(args ...string) string {
		var out bytes.Buffer
		cmd := NewVersion("quarry", "0.1.0", "0123456789abcdef0123456789abcdef01234567")
		cmd.SetOut(&out)
		cmd.SetArgs(args)
		require.NoError(t, cmd.Execute())
		return out.String()
	}
	where := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	require.Equal(t, "quarry 0.1.0\ncommit 0123456789abcdef0123456789abcdef01234567\n"+where+"\n", printed())
	require.JSONEq(t, `{"version":"0.1.0","commit":"0123456789abcdef0123456789abcdef01234567","go":"`+runtime.Version()+
		`","platform":"`+runtime.GOOS+"/"+runtime.GOARCH+`"}`, printed("-o", "json"))
}

func TestCommitThatGoNoted(t *testing.T) {
	require.Empty(t, commitIn(nil))
	require.Equal(t, "abc", commitIn([]debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "false"}}))
	require.Equal(t, "abc-dirty", commitIn([]debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}))
	require.Equal(t, "said", BuildOf("1", "said").Commit)
}

package show

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/verify"
)

func TestFindingsArePrinted(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, Findings(&out, nil))
	require.Equal(t, "everything holds\n", out.String())

	out.Reset()
	require.NoError(t, Findings(&out, []verify.Finding{
		{Severity: verify.SeverityError, Pool: "p", Volume: "v", What: "w", Repair: "r"},
		{Severity: verify.SeverityNote, What: "n"},
	}))
	require.Equal(t, "SEVERITY  POOL  VOLUME  WHAT  REPAIR\n"+
		"error     p     v       w     r\n"+
		"note      -     -       n     by hand\n", out.String())

	out.Reset()
	require.NoError(t, FindingsJSON(&out, nil))
	require.Equal(t, "[]\n", out.String())
}

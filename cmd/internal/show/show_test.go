package show

import (
	"bytes"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func TestOutput(t *testing.T) {
	for text, want := range map[string]string{"": "table", "table": "table", "json": "json", "yaml": ""} {
		var o Output
		f := pflag.NewFlagSet("test", pflag.ContinueOnError)
		o.Flags(f)
		if text != "" {
			require.NoError(t, f.Parse([]string{"-o", text}))
		}
		isJSON, err := o.IsJSON()
		require.Equal(t, want == "", err != nil, "%q", text)
		require.Equal(t, want == "json", isJSON, "%q", text)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Table(&b, []string{"NAME", "WHY"}, []string{"a", ""}, []string{"long", "two\nlines"}))
	require.Equal(t, "NAME  WHY\na     -\nlong  two lines\n", b.String())
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0Mi", 1: "1 bytes", 1 << 20: "1Mi", 1<<20 + 1: "1048577 bytes", 10 << 20: "10Mi", 1<<30 + 5: "1024Mi",
	} {
		require.Equal(t, want, Size(n))
	}
}

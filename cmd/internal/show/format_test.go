package show

import (
	"bytes"
	"os"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func TestFormat(t *testing.T) {
	what := map[string]any{"b": 1, "a": []string{"x"}}
	for text, want := range map[string]string{
		"": "", "wide": "", "json": "{\n  \"a\": [\n    \"x\"\n  ],\n  \"b\": 1\n}\n", "yaml": "a:\n- x\nb: 1\n",
	} {
		var o Format
		flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
		o.Flags(flags, Wide, AsJSON, YAML)
		require.NoError(t, flags.Parse([]string{"-o", text}))
		require.NoError(t, o.Check())
		require.True(t, o.Is(text))

		var b bytes.Buffer
		printed, err := o.Structured(&b, what)
		require.NoError(t, err)
		require.Equal(t, want != "", printed)
		require.Equal(t, want, b.String())

		require.NoError(t, flags.Parse([]string{"-o", "name"}))
		require.EqualError(t, o.Check(), `--output "name" is not wide, json or yaml`)
	}
}

// TestNoColourButOnATerminal proves that files and pipes get plain text, and
// terminals colours unless NO_COLOR or the terminal itself say otherwise.
func TestNoColourButOnATerminal(t *testing.T) {
	require.Equal(t, "x", PaintFor(&bytes.Buffer{}).In(Red, "x"))
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer file.Close()
	require.Equal(t, "x", PaintFor(file).In(Red, "x"))

	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs a terminal: %v", err)
	}
	defer terminal.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	require.Equal(t, "\x1b[31mx\x1b[0m", PaintFor(terminal).In(Red, "x"))
	require.Equal(t, "", PaintFor(terminal).In(Red, ""))
	t.Setenv("TERM", "dumb")
	require.Equal(t, "x", PaintFor(terminal).In(Red, "x"))
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	require.Equal(t, "x", PaintFor(terminal).In(Red, "x"))
}

// Package show is how commands print what they found: the flag -o, tables, JSON,
// colours and sizes, once for all of them.
//
//	show.go     the flag -o of commands that list, tables, JSON and sizes
//	format.go   the flag -o with kubectl's formats
//	paint.go    colours, on a terminal only
//	version.go  the command version
//	findings.go what `quarry verify` found
package show

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
)

// Output is the flag -o of commands that list.
type Output struct{ format string }

// Flags adds the flag.
func (o *Output) Flags(f *pflag.FlagSet) {
	f.StringVarP(&o.format, "output", "o", "table", "table or json")
}

// IsJSON reports whether JSON was asked for. It is an error if something else
// than that or a table was.
func (o *Output) IsJSON() (bool, error) {
	switch o.format {
	case "table":
		return false, nil
	case "json":
		return true, nil
	}
	return false, fmt.Errorf("--output %q is neither table nor json", o.format)
}

// JSON prints what is given, indented.
func JSON(w io.Writer, what any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(what)
}

// Table prints rows of cells in columns: "-" in an empty one, and text of
// several lines in one.
func Table(w io.Writer, rows ...[]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if row[i] = strings.ReplaceAll(cell, "\n", " "); row[i] == "" {
				row[i] = "-"
			}
		}

		fmt.Fprintln(t, strings.Join(row, "\t"))
	}

	return t.Flush()
}

// Size is a number of bytes in mebibytes, the unit that volumes are usually
// made in, or in bytes where that says more.
func Size(n int64) string {
	if n < 10<<20 && n%(1<<20) != 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%dMi", n>>20)
}

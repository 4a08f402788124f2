package show

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// Formats of Format besides the table, which is what "" means.
const (
	Wide   = "wide"
	AsJSON = "json"
	YAML   = "yaml"
	Name   = "name"
)

// Format is the flag -o of commands that show objects, with kubectl's formats.
type Format struct {
	value   string
	allowed []string
}

// Flags adds the flag, with the formats that the command has besides the table.
func (f *Format) Flags(flags *pflag.FlagSet, allowed ...string) {
	f.allowed = allowed
	flags.StringVarP(&f.value, "output", "o", "", "a table, if empty; or "+either(allowed))
}

func either(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Check returns an error if something was asked for that the command does not
// have. To be called before anything is done.
func (f *Format) Check() error {
	if f.value != "" && !slices.Contains(f.allowed, f.value) {
		return fmt.Errorf("--output %q is not %s", f.value, either(f.allowed))
	}
	return nil
}

// Is reports whether a format was asked for.
func (f *Format) Is(format string) bool { return f.value == format }

// Structured prints what is given as JSON or YAML, if one of them was asked
// for, and reports whether it did. YAML has the names of JSON.
func (f *Format) Structured(w io.Writer, what any) (printed bool, err error) {
	switch f.value {
	case AsJSON:
		return true, JSON(w, what)
	case YAML:
		text, err := yaml.Marshal(what)
		if err == nil {
			_, err = w.Write(text)
		}
		return true, err
	}

	return false, nil
}

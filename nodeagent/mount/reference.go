package mount

import (
	"maps"
	"slices"
	"strings"
)

// AllowedOption is an option that a StorageClass may give, for the reference.
type AllowedOption struct {
	Option string
	// Value says what may follow it, after "="; empty where nothing may.
	Value string
}

// AllowedOptions lists the options that [ParseOptions] takes for a filesystem, in order; with the empty name, those that it
// takes for all.
func AllowedOptions(fstype string) []AllowedOption {
	var out []AllowedOption
	if fstype == "" {
		for _, name := range slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(attributes)), superFlags))) {
			out = append(out, AllowedOption{Option: name})
		}
		return out
	}
	for _, name := range slices.Sorted(maps.Keys(allowed[fstype])) {
		value := strings.TrimPrefix(allowed[fstype][name]("\x00", true), "it wants ")
		switch {
		case value == "it takes no value":
			value = ""
		case allowed[fstype][name]("", false) == "":
			value += ", or nothing"
		}
		out = append(out, AllowedOption{name, value})
	}
	return out
}

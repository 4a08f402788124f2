package filesystem

import (
	"maps"
	"slices"
	"strings"
)

// AllowedOption is an option that a StorageClass may give, for the reference.
type AllowedOption struct {
	// Option is as it is written: "-i", or "-E stride" for an element of a list.
	Option string
	// Value says what may follow it; empty where nothing may.
	Value string
}

// AllowedMkfsOptions lists what [ValidateMkfsOptions] lets through, in order.
func AllowedMkfsOptions(t Type) []AllowedOption {
	var out []AllowedOption
	for _, name := range slices.Sorted(maps.Keys(mkfsRules[t])) {
		rule := mkfsRules[t][name]
		if rule.list == nil {
			out = append(out, AllowedOption{name, wants(rule.value)})
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(rule.list)) {
			out = append(out, AllowedOption{name + " " + key, wants(rule.list[key])})
		}
	}
	return out
}

// wants is what a check says to a value that nothing allows; it is nothing where no value is allowed.
func wants(check func(string) string) string {
	if check("") == "" {
		return ""
	}
	return strings.TrimPrefix(check("\x00"), "it wants ")
}

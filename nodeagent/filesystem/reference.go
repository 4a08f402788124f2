package filesystem

import "strings"

// AllowedMkfsOptions is what [ValidateMkfsOptions] lets through, for the
// reference: each option as it is written ("-i", or "-E stride" for an element
// of a list), and what may follow it, empty where nothing may.
func AllowedMkfsOptions(t Type) map[string]string {
	out := map[string]string{}
	for name, rule := range mkfsRules[t] {
		if rule.list == nil {
			out[name] = wants(rule.value)
		}
		for key, check := range rule.list {
			out[name+" "+key] = wants(check)
		}
	}
	return out
}

// wants is what a check says to a value that nothing allows; it is nothing
// where no value is allowed.
func wants(check func(string) string) string {
	if check("") == "" {
		return ""
	}
	return strings.TrimPrefix(check("\x00"), "it wants ")
}

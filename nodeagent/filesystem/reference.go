package filesystem

// AllowedMkfsOptions is what [ValidateMkfsOptions] lets through, for the
// reference: each option as it is written ("-i", or "-E stride" for an element
// of a list), and what may follow it, empty where nothing may.
func AllowedMkfsOptions(t Type) map[string]string {
	out := map[string]string{}
	for name, rule := range mkfsRules[t] {
		if rule.list == nil {
			out[name] = rule.value.Wants()
		}
		for key, check := range rule.list {
			out[name+" "+key] = check.Wants()
		}
	}
	return out
}

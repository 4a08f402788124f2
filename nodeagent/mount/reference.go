package mount

// AllowedOptions is what [ParseOptions] takes for a filesystem, for the
// reference: each option, and what may follow it after "=", empty where nothing
// may. With the empty name it is what is taken for all filesystems.
func AllowedOptions(fstype string) map[string]string {
	out := map[string]string{}
	if fstype == "" {
		for name := range attributes {
			out[name] = ""
		}
		for _, name := range superFlags {
			out[name] = ""
		}
	}
	for name, check := range allowed[fstype] {
		out[name] = check.Wants()
	}
	return out
}

package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

const maxHeavyJobs = 64

var filesystems = []string{"btrfs", "ext4", "xfs"}

// forbidden are directories no pool may be in, hold or be: they belong to the
// kernel, to kubelet's and the agent's own mounts, or are gone at every boot.
var forbidden = []string{"/proc", "/sys", "/dev", "/run", "/var/run", "/var/lib/kubelet", "/etc",
	"/boot", "/usr"}

func (c *Config) validate() error {
	var errs []error
	if c.HeavyJobs < 1 || c.HeavyJobs > maxHeavyJobs {
		errs = append(errs, &FieldError{Field: "heavyJobs",
			Problem: fmt.Sprintf("%d is not a number from 1 to %d", c.HeavyJobs, maxHeavyJobs)})
	}
	errs = append(errs, validatePools("pools", c.Pools)...)
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		field := "nodes." + name
		for _, msg := range validation.IsDNS1123Subdomain(name) {
			errs = append(errs, &FieldError{Field: field, Problem: "not a node's name: " + msg})
		}
		errs = append(errs, validatePools(field+".pools", c.Nodes[name].Pools)...)
	}
	return errors.Join(errs...)
}

func validatePools(field string, pools []Pool) (errs []error) {
	for i, p := range pools {
		at := fmt.Sprintf("%s[%d]", field, i)
		wrong := func(name, problem string) {
			errs = append(errs, &FieldError{Field: at + "." + name, Problem: problem})
		}
		for _, msg := range validation.IsDNS1123Label(p.Name) {
			wrong("name", fmt.Sprintf("%q: %s", p.Name, msg))
		}
		if problem := pathProblem(p.Path); problem != "" {
			wrong("path", problem)
		}
		if !slices.Contains(filesystems, p.DefaultFilesystem) {
			wrong("defaultFilesystem", fmt.Sprintf("%q is not one of %s",
				p.DefaultFilesystem, strings.Join(filesystems, ", ")))
		}
		for _, key := range slices.Sorted(maps.Keys(p.Labels)) {
			for _, msg := range validation.IsQualifiedName(key) {
				wrong("labels", fmt.Sprintf("key %q: %s", key, msg))
			}
			for _, msg := range validation.IsValidLabelValue(p.Labels[key]) {
				wrong("labels", fmt.Sprintf("value %q of %s: %s", p.Labels[key], key, msg))
			}
		}
		for j, other := range pools[:i] {
			if p.Name == other.Name {
				wrong("name", fmt.Sprintf("%q is the name of %s[%d] too", p.Name, field, j))
			}
			if within(p.Path, other.Path) || within(other.Path, p.Path) {
				wrong("path", fmt.Sprintf("%s and %s (%s[%d]) are the same or one is in the other",
					p.Path, other.Path, field, j))
			}
		}
	}
	return errs
}

func pathProblem(path string) string {
	switch {
	case path == "":
		return "is required"
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0):
		return fmt.Sprintf("%q is not an absolute path without \".\", \"..\", doubled or "+
			"closing slashes", path)
	case path == "/":
		return "the root directory can't be a pool; make a directory for it"
	}
	for _, dir := range forbidden {
		if within(path, dir) || within(dir, path) {
			return fmt.Sprintf("%s can't be a pool: %s is not for volumes", path, dir)
		}
	}
	return ""
}

// within says whether path is dir or below it. Both are clean.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

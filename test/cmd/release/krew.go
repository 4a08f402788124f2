package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// manifest is a plugin's manifest as krew reads it.
type manifest struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Spec       manifestSpec      `json:"spec"`
}

type manifestSpec struct {
	Version          string     `json:"version"`
	Homepage         string     `json:"homepage"`
	ShortDescription string     `json:"shortDescription"`
	Description      string     `json:"description"`
	Platforms        []platform `json:"platforms"`
}

type platform struct {
	Selector map[string]map[string]string `json:"selector"`
	URI      string                       `json:"uri"`
	SHA256   string                       `json:"sha256"`
	Bin      string                       `json:"bin"`
}

// krew writes the manifest, with the checksums of the plugin's archives by
// platform.
func (r *release) krew(sums map[string]string) error {
	m := manifest{
		APIVersion: "krew.googlecontainertools.github.com/v1alpha2",
		Kind:       "Plugin",
		Metadata:   map[string]string{"name": "quarry"},
		Spec: manifestSpec{
			Version:          "v" + r.version,
			Homepage:         "https://github.com/quarry-storage/quarry",
			ShortDescription: "Look at Quarry, and look after its volumes",
			Description: "What an administrator does with node-local volumes by hand: see what is wrong,\n" +
				"restore what was deleted, adopt directories, recover a cluster from its disks.\n",
		},
	}
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		system, arch, _ := strings.Cut(name, "_")
		m.Spec.Platforms = append(m.Spec.Platforms, platform{
			Selector: map[string]map[string]string{"matchLabels": {"os": system, "arch": arch}},
			URI:      fmt.Sprintf("%s/kubectl-quarry_%s_%s.tar.gz", r.url, r.version, name),
			SHA256:   sums[name],
			Bin:      "kubectl-quarry",
		})
	}
	text, err := yaml.Marshal(m)
	if err != nil {
		return err
	}
	return r.write("quarry.yaml", text)
}

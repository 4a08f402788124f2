package parameters

import (
	"fmt"
	"strings"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Reference is docs/reference/parameters.md.
func Reference() string {
	var b strings.Builder
	b.WriteString(
		"<!-- Generated from provisioner/parameters/table.go by `go generate " +
			"./provisioner/parameters`; do not edit. -->\n")
	b.WriteString("# StorageClass parameters\n\n")
	b.WriteString(
		"A parameter or a value that is not listed here is refused with an event on the claim " +
			"that names the nearest one.\n")
	b.WriteString(
		"Parameters that begin with `csi.storage.k8s.io/` belong to the CSI sidecars and are " +
			"passed by. A class works\n")
	b.WriteString(
		"unchanged with `provisioner: " + v1alpha1.LocalProvisioner + "` and `provisioner: " +
			v1alpha1.CSIDriver + "`.\n\n",
	)
	b.WriteString("| Parameter | Allowed | Default | Meaning |\n|---|---|---|---|\n")
	for _, d := range parameterTable {
		allowed := d.Form
		if len(d.Values) > 0 {
			allowed = "`" + strings.Join(d.Values, "`, `") + "`"
		}
		meaning := d.Meaning
		if d.ClusterOnly {
			meaning += " Not without a cluster (`quarry standalone`)."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, allowed, d.Default, meaning)
	}

	b.WriteString(`
## What cannot be had together

* ` + "`backend: directory` with `enforcement: strict`, or for a claim with `volumeMode: Block`" + `
* ` + "`enforcement: none` with `backend: loop`, `inodes`, or for a claim with " +
		"`volumeMode: Block`" + `
* ` + "`allocation` or `fsType` with `backend: directory` or `enforcement: none`: they are " +
		"about images" + `
* ` + "`mkfsOptions` without `fsType`; `trashRetention` without `onDelete: trash`; " +
		"`nodeLossDelay` without `onNodeLoss: afterDelay`" + `
* ` + "`pool` with `poolSelector` or `poolSpread: apart`; " +
		"`onDelete: recycle` with `scrub: none`" + `
`)
	return b.String()
}

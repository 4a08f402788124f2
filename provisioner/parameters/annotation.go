package parameters

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// all is what the class said, and the defaults that hold where it said nothing.
func (p Set) all() map[string]string {
	all := map[string]string{
		"backend":     string(p.Backend),
		"enforcement": string(p.Enforcement),
		"onDelete":    string(p.OnDelete),
		"scrub":       string(p.Scrub),
		"onNodeLoss":  string(p.OnNodeLoss),
	}
	if p.Backend != v1alpha1.BackendDirectory && p.Enforcement != v1alpha1.EnforcementNone {
		all["allocation"] = string(p.Allocation)
	}
	if p.TrashRetention > 0 {
		all["trashRetention"] = p.TrashRetention.String()
	}
	if p.NodeLossDelay > 0 {
		all["nodeLossDelay"] = p.NodeLossDelay.String()
	}

	maps.Copy(all, p.raw)
	return all
}

// JSON is what goes into the annotation v1alpha1.AnnotationParameters: what the
// class said, so that a lost record can be written again as it was, and a
// default that changes later does not change volumes that exist.
func (p Set) JSON() string { return parametersJSON(p.all()) }

// JSONOf is JSON for a volume that exists: what its class said when it was
// made, or, for one that was made without a class, what its spec says.
func JSONOf(spec *v1alpha1.VolumeSpec) string {
	if len(spec.Parameters) > 0 {
		return parametersJSON(spec.Parameters)
	}

	p := Set{
		Backend:     spec.Backend,
		Enforcement: spec.Enforcement,
		Allocation:  spec.Allocation,
		OnDelete:    spec.Deletion.OnDelete,
		Scrub:       spec.Deletion.Scrub,
		OnNodeLoss:  NodeLossNever,
		raw:         map[string]string{},
	}
	if r := spec.Deletion.TrashRetention; r != nil {
		p.TrashRetention = r.Duration
	}

	for name, value := range map[string]string{
		"pool":        spec.Pool,
		"fsType":      spec.FSType,
		"mode":        spec.Mode,
		"mkfsOptions": strings.Join(spec.MkfsOptions, " "),
	} {
		if value != "" {
			p.raw[name] = value
		}
	}

	for name, id := range map[string]*int64{"owner": spec.Owner, "group": spec.Group} {
		if id != nil {
			p.raw[name] = strconv.FormatInt(*id, 10)
		}
	}

	switch {
	case spec.Inodes > 0:
		p.raw["inodes"] = strconv.FormatInt(spec.Inodes, 10)
	case spec.Inodes < 0:
		p.raw["inodes"] = unlimited
	}

	if spec.PoolSelector != nil {
		p.raw["poolSelector"] = metav1.FormatLabelSelector(spec.PoolSelector)
	}

	return p.JSON()
}

func parametersJSON(all map[string]string) string {
	text, err := json.Marshal(all) // sorts the keys
	if err != nil {
		panic(fmt.Sprintf("marshalling a map of strings: %v", err)) // cannot be
	}
	return string(text)
}

// FromJSON reads what JSON wrote. Parameters of a version that this one does
// not know are an error: a record must not be rebuilt as something it was not.
func FromJSON(text string) (Set, error) {
	raw := map[string]string{}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &raw); err != nil {
			return Set{}, fmt.Errorf("annotation %s: %w", v1alpha1.AnnotationParameters, err)
		}
	}
	return Parse(raw)
}

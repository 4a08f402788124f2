package diagnose

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Severity says how bad a finding is.
type Severity string

const (
	// Critical: data cannot be used, or nobody is served, now.
	Critical Severity = "critical"
	// Warning: somebody has to do something, and nothing that ran has stopped.
	Warning Severity = "warning"
	// Note: nothing is wrong. It is said so that nobody searches for it.
	Note Severity = "note"
)

// rank orders severities, the worst first.
func (s Severity) rank() int { return slices.Index([]Severity{Critical, Warning, Note}, s) }

// Kinds of objects that findings are about.
const (
	KindNode       = "Node"
	KindController = "Deployment"
	KindPool       = "Pool"
	KindVolume     = "Volume"
	KindPV         = "PersistentVolume"
	KindClaim      = "PersistentVolumeClaim"
)

// kinds orders findings of one severity: a cause comes before what follows from
// it.
var kinds = []string{KindController, KindNode, KindPool, KindVolume, KindPV, KindClaim}

// Finding is one thing that is not as it should be, or a Note. Its fields are
// part of what the commands print as JSON: more may come, none is renamed.
type Finding struct {
	Severity Severity `json:"severity"`
	// Kind, Namespace and Name are the object's.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Claim is NAMESPACE/NAME of the claim that a volume is for.
	Claim string `json:"claim,omitempty"`
	// Node is where it is; empty where that is not known.
	Node string `json:"node,omitempty"`
	// Reason is one word for programs: of docs/reference/reasons.md, of
	// Kubernetes, or of this package.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Remedy is what to do next.
	Remedy string `json:"remedy,omitempty"`
	// Runbook is the chapter that says more, below the repository's root.
	Runbook string `json:"runbook,omitempty"`
	// Since is when it began, as far as anybody knows.
	Since *metav1.Time `json:"since,omitempty"`
}

// Object is the finding's object as a person names it.
func (f *Finding) Object() string {
	if f.Namespace != "" {
		return f.Namespace + "/" + f.Name
	}
	return f.Name
}

// Wrong reports whether any of the findings is more than a Note.
func Wrong(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity != Note })
}

// sortFindings puts the worst first, causes before what follows from them, and
// what has one reason together. The order does not depend on the order in which
// objects were read.
func sortFindings(all []Finding) {
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.Severity.rank(), b.Severity.rank()),
			cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
			cmp.Compare(a.Reason, b.Reason),
			cmp.Compare(a.Remedy, b.Remedy),
			cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name),
		)
	})
}

// Group is what several objects have in common: how bad it is, the reason and
// what to do.
type Group struct {
	Severity                      Severity
	Kind, Reason, Remedy, Runbook string
	// Findings are those of the group; at least one.
	Findings []Finding
}

// Groups puts findings together that call for one and the same thing, in the
// order of the first of each. Three hundred claims that wait for room are one
// task.
func Groups(findings []Finding) []Group {
	var out []Group
	for i := range findings {
		f := &findings[i]
		at := slices.IndexFunc(out, func(g Group) bool {
			return g.Severity == f.Severity && g.Kind == f.Kind && g.Reason == f.Reason &&
				g.Remedy == f.Remedy
		})
		if at < 0 {
			at = len(out)
			out = append(out, Group{
				Severity: f.Severity, Kind: f.Kind, Reason: f.Reason, Remedy: f.Remedy,
				Runbook: f.Runbook,
			})
		}

		out[at].Findings = append(out[at].Findings, *f)
	}

	return out
}

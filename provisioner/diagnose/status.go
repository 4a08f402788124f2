package diagnose

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Status is what a person on call is shown first. Its fields are part of what
// `kubectl quarry status` prints as JSON: more may come, none is renamed.
type Status struct {
	Time metav1.Time `json:"time"`
	// Healthy is true if no finding is more than a Note.
	Healthy    bool      `json:"healthy"`
	Controller Replicas  `json:"controller"`
	Nodes      []Node    `json:"nodes"`
	Pools      []Pool    `json:"pools"`
	Volumes    Counts    `json:"volumes"`
	Waiting    []Waiting `json:"waiting"`
	// Findings are what is wrong, the worst first, and what is worth knowing.
	Findings []Finding `json:"findings"`
}

// Status says of a cluster what there is, what is wrong, and what to do.
func (c *Cluster) Status() *Status {
	s := &Status{
		Time:       metav1.Time{Time: c.At},
		Controller: c.controller(),
		Nodes:      c.nodes(),
		Volumes:    c.counts(),
		Findings:   []Finding{},
	}
	s.Pools = c.poolsOf(s.Nodes)
	s.Waiting = c.waiting(s.Nodes)

	if f := c.controllerFinding(); f != nil {
		s.Findings = append(s.Findings, *f)
	}

	s.Findings = append(s.Findings, c.nodeFindings(s.Nodes)...)
	s.Findings = append(s.Findings, c.poolFindings(s.Nodes)...)
	s.Findings = append(s.Findings, c.volumeFindings(s.Nodes, NewLinks(c.PVs, nil))...)
	s.Findings = append(s.Findings, c.claimFindings(s.Waiting)...)
	sortFindings(s.Findings)
	s.Healthy = !Wrong(s.Findings)

	return s
}

// IsWrong reports whether a finding that is more than a Note is about an
// object.
func (s *Status) IsWrong(kind, namespace, name string) bool {
	return slices.ContainsFunc(s.Findings, func(f Finding) bool {
		return f.Severity != Note && f.Kind == kind && f.Namespace == namespace && f.Name == name
	})
}

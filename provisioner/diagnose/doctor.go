package diagnose

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Result is what a check came to.
type Result string

// Results of a check.
const (
	ResultOK Result = "ok"
	// ResultNote: nothing is wrong, and it is worth knowing.
	ResultNote Result = "note"
	// ResultWarning: something of Quarry does not work as it should, or will
	// not.
	ResultWarning Result = "warning"
	// ResultError: Quarry does not work, or is not safe.
	ResultError Result = "error"
	// ResultUnknown: it could not be looked at.
	ResultUnknown Result = "unknown"
)

// Check is one thing that was looked at. Its fields are part of what `kubectl
// quarry doctor` prints as JSON: more may come, none is renamed.
type Check struct {
	// Name is one word for programs; several checks may have the same.
	Name    string `json:"name"`
	Result  Result `json:"result"`
	Message string `json:"message"`
	// Remedy is what to do about it.
	Remedy string `json:"remedy,omitempty"`
	// Doc is the page that says more, below the repository's root.
	Doc string `json:"doc,omitempty"`
}

// Report is what the doctor found.
type Report struct {
	Time metav1.Time `json:"time"`
	// Healthy is true if no check came to a warning or an error, and Complete
	// if none is unknown.
	Healthy  bool `json:"healthy"`
	Complete bool `json:"complete"`
	// Installed is false where there is neither DaemonSet nor Deployment.
	Installed bool    `json:"installed"`
	Checks    []Check `json:"checks"`
}

// doctor collects what the checks come to.
type doctor struct {
	i      *Install
	checks []Check
}

// Report looks at an installation, or at what one needs, from the ground up:
// the cluster, then Quarry's kinds, programs, rights, and what users see.
func (i *Install) Report() *Report {
	d := &doctor{i: i}
	d.server()
	d.nodes()
	installed := len(i.DaemonSets) > 0 || len(i.Deployments) > 0
	switch {
	case installed:
		d.kinds()
		d.podSecurity()
		d.controller()
		d.agents()
		d.versions()
		d.accountRights("controller-rights", partController, i.ControllerAccount(),
			i.ControllerLacks)
		d.accountRights("agent-rights", partAgent, i.AgentAccount(), i.AgentLacks)
		d.policy()
		d.drivers()
		d.classes()
		d.capacity()
	case d.unknown("programs", partPrograms):
	default:
		d.leftovers()
		d.podSecurity()
		d.ownRights()
		d.say("installed", ResultError, "Quarry is not installed: no DaemonSet of agents, and no "+
			"Deployment of the controller", "helm install quarry charts/quarry --namespace "+
			"quarry-system --create-namespace, once nothing else is wrong above; where its pods "+
			"have other labels say --agent-selector and --controller-selector",
			"docs/guides/pools.md")
	}

	has := func(results ...Result) bool {
		return slices.ContainsFunc(d.checks, func(c Check) bool {
			return slices.Contains(results, c.Result)
		})
	}
	return &Report{
		Time: metav1.Time{Time: i.At}, Installed: installed, Checks: d.checks,
		Healthy: !has(ResultWarning, ResultError), Complete: !has(ResultUnknown),
	}
}

func (d *doctor) say(name string, r Result, message, remedy, doc string) {
	d.checks = append(d.checks, Check{
		Name:    name,
		Result:  r,
		Message: message,
		Remedy:  remedy,
		Doc:     doc,
	})
}

func (d *doctor) ok(name, message string) { d.say(name, ResultOK, message, "", "") }

// unknown says that a part could not be read, and reports whether that is so.
func (d *doctor) unknown(name, part string) bool {
	err := d.i.Unread[part]
	if err != nil {
		d.say(name, ResultUnknown, "cannot look at "+part+": "+err.Error(),
			"get the right to, or ask somebody who has it", "docs/guides/kubectl-quarry.md#rights")
	}
	return err != nil
}

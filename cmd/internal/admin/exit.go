package admin

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
)

// Statuses that the commands end with which look for what is wrong.
const (
	exitWrong    = 1 // something is wrong, and the output says what
	exitNoLook   = 2 // it could not be looked at
	guideRights  = "docs/guides/kubectl-quarry.md#rights"
	sayNoCluster = "Quarry is not installed in this cluster; `kubectl quarry doctor` says " +
		"what is missing"
)

// exit is an error that says with which status the program is to end. Without
// an error in it there is nothing more to be said.
type exit struct {
	status int
	err    error
}

func (e *exit) Error() string {
	if e.err == nil {
		return "something is wrong"
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// Report prints the error that a command ended with, unless its output has said
// all already, and returns the status to end with.
func Report(w io.Writer, program string, err error) int {
	if err == nil {
		return 0
	}

	status := 1
	if e, is := errors.AsType[*exit](err); is {
		status = e.status
		if e.err == nil {
			return status
		}
	}

	fmt.Fprintf(w, "%s: %v\n", program, err)
	return status
}

// noLook makes of an error that something could not be looked at, with what to
// do about it where that is known.
func noLook(err error) error {
	if err == nil {
		return nil
	}
	return &exit{exitNoLook, noRight(err)}
}

// noRight says of an error what to do about it, where that is known.
func noRight(err error) error {
	switch {
	case meta.IsNoMatchError(err):
		err = fmt.Errorf("%s (%w)", sayNoCluster, err)
	case apierrors.IsForbidden(err):
		err = fmt.Errorf("%w; which rights are needed says %s", err, guideRights)
	}
	return err
}

// looks makes cmd a command that ends with exitNoLook whenever it did not come
// to an answer: also where its flags or arguments are wrong, which scripts
// would take for one otherwise.
func looks(cmd *cobra.Command) *cobra.Command {
	run, args := cmd.RunE, cmd.Args
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exit{exitNoLook, err} })
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return &exit{exitNoLook, err}
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		err := run(cmd, given)
		if _, is := errors.AsType[*exit](err); err == nil || is {
			return err
		}
		return noLook(err)
	}

	return cmd
}

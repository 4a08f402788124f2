package parameters

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// aloneError is an Error where there is no StorageClass.
type aloneError struct{ err *Error }

func (e *aloneError) Error() string {
	return fmt.Sprintf("parameter %q: %s", e.err.Parameter, e.err.Message)
}

// Reason returns v1alpha1.ReasonInvalidParameter.
func (e *aloneError) Reason() string { return e.err.Reason() }

// ApplyAlone is Apply on a machine without a cluster: what only a cluster gives
// a meaning to is refused, unless it is what holds anyway.
func ApplyAlone(class map[string]string, spec *v1alpha1.VolumeSpec) (canonical string, err error) {
	for _, key := range slices.Sorted(maps.Keys(class)) {
		if strings.HasPrefix(key, sidecarPrefix) {
			continue
		}
		def, known := parameterNamed(key)
		switch {
		case !known:
			return "", &aloneError{unknownParameter(key, true)}
		case def.ClusterOnly && (len(def.Values) == 0 || class[key] != def.Default):
			return "", &aloneError{&Error{key, "means nothing without a cluster" + instead(key) +
				"; leave it out"}}
		}
	}

	canonical, err = Apply(class, spec)
	if refused, is := errors.AsType[*Error](err); is {
		return "", &aloneError{refused}
	}
	return canonical, err
}

// instead says what there is in the place of a parameter, if there is anything.
func instead(parameter string) string {
	switch parameter {
	case "poolSelector":
		return ": pools have no labels here, and `pool` takes one by its name"
	case "poolSpread":
		return ": there are no StatefulSets, and `pool` takes one by its name"
	}
	return ""
}

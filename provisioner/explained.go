package provisioner

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// wrapping is what stands before an explanation in events that others emit: the
// external-provisioner library, and gRPC where the CSI sidecar asked.
var wrapping = []*regexp.Regexp{
	regexp.MustCompile(`^failed to provision volume with StorageClass "[^"]*": `),
	regexp.MustCompile(`^rpc error: code = \w+ desc = `),
}

// openings are how the texts of some errors begin, where the hint alone does not
// tell which error it was.
var openings = map[string]string{
	v1alpha1.ReasonNoSuitableNode: (&noNodeError{}).Error(),
	v1alpha1.ReasonDeletePending:  "volume ",
}

// Explained takes apart the text of an event that tells of an error: its reason,
// what happened, and what can be done about it. The reason is empty where the
// text does not say it, as of errors without a hint.
func Explained(text string) (reason, what, hint string) {
	for _, wrap := range wrapping {
		text = wrap.ReplaceAllString(text, "")
	}

	what = text
	for candidate, v := range verdicts {
		if v.Hint == "" || !strings.HasSuffix(text, " ("+v.Hint+")") {
			continue
		}
		what, hint = strings.TrimSuffix(text, " ("+v.Hint+")"), v.Hint

		opening, distinct := openings[candidate]
		switch {
		case distinct && strings.HasPrefix(text, opening):
			return candidate, what, hint
		case !distinct:
			reason = candidate
		}
	}
	return reason, what, hint
}

// Hint is what a person can do about a reason for which a claim is not served;
// empty where there is nothing to be said.
func Hint(reason string) string { return verdicts[reason].Hint }

// VolumeOf is the volume that a PersistentVolume of ours leads to, and the node
// it is on. ours is false for any other.
func VolumeOf(pv *corev1.PersistentVolume) (volume, node string, ours bool) {
	o, ours := originOf(pv)
	return o.Volume, o.Node, ours
}

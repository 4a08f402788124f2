package admin

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// sayTo has a rescuer tell what it does on the command's output.
func sayTo(cmd *cobra.Command, r *rescue.Rescuer) {
	r.Say = func(format string, args ...any) {
		fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	}
}

var errNotConfirmed = errors.New("not confirmed; nothing was done")

// confirm asks for a "yes" unless the flag --yes gave it.
func confirm(cmd *cobra.Command, yes bool, question string, args ...any) error {
	if yes {
		return nil
	}

	fmt.Fprintf(cmd.OutOrStdout(), question+" [yes/no] ", args...)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && answer == "" {
		fmt.Fprintln(cmd.OutOrStdout())
		return fmt.Errorf("%w (--yes confirms without asking)", errNotConfirmed)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "yes" && a != "y" {
		return errNotConfirmed
	}

	return nil
}

// volumeRow is what every list says of a volume.
func volumeRow(v *v1alpha1.Volume, more ...string) []string {
	claim := ""
	if c := v.Spec.Claim; c != nil {
		claim = c.Namespace + "/" + c.Name
	}

	pool := v.Status.Pool
	if pool == "" {
		pool = v.Spec.Pool
	}

	return append([]string{v.Name, v.Spec.NodeName, pool, claim, v.Spec.Capacity.String()}, more...)
}

// inNamespace keeps the volumes of one namespace's claims; all with "".
func inNamespace(all []v1alpha1.Volume, namespace string) []v1alpha1.Volume {
	out := []v1alpha1.Volume{}
	for _, v := range all {
		if namespace == "" || v.Spec.Claim != nil && v.Spec.Claim.Namespace == namespace {
			out = append(out, v)
		}
	}
	return out
}

// left is a time ahead as people say it.
func left(at time.Time) string {
	d := time.Until(at).Round(time.Minute)
	if d <= 0 {
		return "now"
	}
	return fmt.Sprintf("in %s", strings.TrimSuffix(d.String(), "0s"))
}

// parseClaim reads NAMESPACE/NAME.
func parseClaim(text string) (*v1alpha1.ClaimReference, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("%q is not a claim: NAMESPACE/NAME", text)
	}
	return &v1alpha1.ClaimReference{Namespace: namespace, Name: name}, nil
}

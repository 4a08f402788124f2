package csi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Every reason that a call can fail for has a code, also one that is added to
// the API some day: without a row the caller is told Internal, and tries again
// for ever.
func TestReasonsHaveCodes(t *testing.T) {
	without := map[string]string{
		v1alpha1.ReasonNotAdoptable:   "CreateVolume adopts nothing; kubectl quarry adopt does",
		v1alpha1.ReasonNoMatchingPool: "the sidecar serves no claims with selectors",
	}
	file, err := parser.ParseFile(token.NewFileSet(), "../api/v1alpha1/reasons.go", nil, parser.ParseComments)
	require.NoError(t, err)

	checked := 0
	for _, decl := range file.Decls {
		group, is := decl.(*ast.GenDecl)
		if !is || !isOfErrors(group.Doc.Text()) {
			continue
		}
		for _, constant := range group.Specs {
			reason, err := strconv.Unquote(constant.(*ast.ValueSpec).Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			checked++
			if why, is := without[reason]; is {
				require.NotContains(t, codeOf, reason, why)
			} else {
				require.Contains(t, codeOf, reason)
			}
		}
	}
	require.Greater(t, checked, 25)
}

// isOfErrors reports whether a group of reasons is of refusals and errors, and
// not of a volume's life.
func isOfErrors(comment string) bool {
	comment = strings.Join(strings.Fields(comment), " ")
	return strings.HasPrefix(comment, "Reasons of ConditionReady with phase Refused") ||
		strings.HasPrefix(comment, "Reasons of errors ")
}

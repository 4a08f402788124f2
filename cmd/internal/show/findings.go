package show

import (
	"fmt"
	"io"

	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// Findings prints what does not hold, as a table.
func Findings(w io.Writer, findings []verify.Finding) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintln(w, "everything holds")
		return err
	}
	rows := [][]string{{"SEVERITY", "POOL", "VOLUME", "WHAT", "REPAIR"}}
	for _, f := range findings {
		repair := f.Repair
		if repair == "" {
			repair = "by hand"
		}
		rows = append(rows, []string{string(f.Severity), f.Pool, f.Volume, f.What, repair})
	}
	return Table(w, rows...)
}

// FindingsJSON prints findings as a JSON array, [] when there is none.
func FindingsJSON(w io.Writer, findings []verify.Finding) error {
	if findings == nil {
		findings = []verify.Finding{}
	}
	return JSON(w, findings)
}

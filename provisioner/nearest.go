package provisioner

import (
	"fmt"
	"strings"
)

// didYouMean names the candidate nearest to what was written, if one is near enough to be a slip of the pen.
func didYouMean(written string, candidates []string) string {
	best, bestDistance := "", len(written)/2+1
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(written), strings.ToLower(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance is how many insertions, deletions and replacements of bytes lead from a to b (Levenshtein). Both come
// from a StorageClass, whose parameters the API server limits to 256 KiB in all, so a is cut to what can be a slip.
func editDistance(a, b string) int {
	const longest = 64
	if len(a) > longest {
		a = a[:longest]
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := diagonal
			if a[i-1] != b[j-1] {
				replace++
			}
			diagonal = row[j]
			row[j] = min(replace, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// shorten and quote keep what a user wrote from filling an event, whose text ends at 1024 bytes.
func shorten(s string) string {
	const longest = 64
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "..."
}

func quote(s string) string { return fmt.Sprintf("%q", shorten(s)) }

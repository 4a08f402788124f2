// Package nearest finds what somebody may have meant, for error messages.
package nearest

import "strings"

// longest is how much of a word is looked at, in bytes. Words come from users,
// and what is longer is no slip.
const longest = 64

// Word returns the candidate with the smallest edit distance to the word, and
// "" when none is near enough to be a likely slip: more than two edits, or
// more than half of the word. Upper and lower case are the same to it.
func Word(word string, candidates []string) string {
	if len(word) > longest {
		word = word[:longest]
	}
	best, bestDistance := "", 3
	for _, c := range candidates {
		d := distance(strings.ToLower(word), strings.ToLower(c))
		if d < bestDistance && 2*d <= len(word) {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is Levenshtein's: the least number of bytes to insert, delete or
// replace that makes a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

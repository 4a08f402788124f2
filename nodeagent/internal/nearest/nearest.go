// Package nearest finds what somebody may have meant, for error messages.
package nearest

// Word returns the candidate with the smallest edit distance to the word, and
// "" when none is near enough to be a likely slip: more than two edits, or
// more than half of the word.
func Word(word string, candidates []string) string {
	best, bestDistance := "", 3
	for _, c := range candidates {
		if d := distance(word, c); d < bestDistance && 2*d <= len(word) {
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

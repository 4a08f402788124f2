package nearest

import "testing"

func TestWord(t *testing.T) {
	candidates := []string{"noatime", "relatime", "nodiratime", "ro", "commit"}
	for word, want := range map[string]string{
		"noatme":    "noatime",
		"noatime":   "noatime",
		"comit":     "commit",
		"reltime":   "relatime",
		"xyz":       "",
		"or":        "", // two edits are the whole word
		"":          "",
		"subvolume": "",
	} {
		if got := Word(word, candidates); got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
}

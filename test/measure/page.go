package measure

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ReplaceBlock puts text into a page in the place of a named block, which lies
// between two comments. What is around it is people's own. A page without the
// block is an error.
func ReplaceBlock(page, name, text string) error {
	content, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
	before, rest, found := strings.Cut(string(content), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("%s has no block between %q and %q", page, strings.TrimSpace(begin), end)
	}
	changed := before + begin + strings.TrimRight(text, "\n") + "\n" + end + after
	return WriteFiles(filepath.Dir(page), map[string][]byte{filepath.Base(page): []byte(changed)})
}

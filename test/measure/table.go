package measure

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Table is a table of a Markdown page.
type Table struct {
	Head []string
	Rows [][]string
}

// Row adds a row: text as it is, numbers short.
func (t *Table) Row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		switch v := cell.(type) {
		case float64:
			row[i] = short(v)
		default:
			row[i] = fmt.Sprint(v)
		}
	}
	t.Rows = append(t.Rows, row)
}

// Markdown writes the table.
func (t *Table) Markdown() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.Head)
	fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(t.Head)))
	for _, row := range t.Rows {
		line(row)
	}
	return b.String()
}

// Origin says what was measured where, so that a figure can be repeated.
type Origin struct {
	Commit string    `json:"commit"`
	At     time.Time `json:"at"`
	Cores  int       `json:"cores"`
	Memory int64     `json:"memoryBytes"`
	Kernel string    `json:"kernel"`
}

// OriginOf looks at a checkout and at this machine. A checkout with changes is
// named so.
func OriginOf(checkout string) Origin {
	o := Origin{At: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU()}
	o.Commit = commitOf(checkout)
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		o.Kernel, _, _ = strings.Cut(strings.TrimSpace(string(text)), "-") // the version, without a vendor's build
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kibibytes int64
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kibibytes); err == nil {
			o.Memory = kibibytes << 10
		}
	}
	return o
}

// commitOf names the commit of a checkout. Pages that a run before has written
// make no difference to what is measured.
func commitOf(checkout string) string {
	git := func(args ...string) string {
		out, err := exec.Command("git", append([]string{"-C", checkout}, args...)...).Output()
		if err != nil {
			return "unknown" // no git, or no repository: a figure without a commit is still one
		}
		return strings.TrimSpace(string(out))
	}
	commit := git("rev-parse", "--short=10", "HEAD")
	if git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs") != "" {
		commit += " with changes"
	}
	return commit
}

// String is the origin in a sentence's words.
func (o Origin) String() string {
	return fmt.Sprintf("commit %s, %s, %d cores, %d GiB, kernel %s", o.Commit, o.At.Format("2006-01-02 15:04 UTC"),
		o.Cores, o.Memory>>30, o.Kernel)
}

// WriteFiles writes files of a directory, which it makes, each whole or not at
// all.
func WriteFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		temporary := filepath.Join(dir, "."+name+".tmp")
		if err := os.WriteFile(temporary, content, 0o644); err != nil {
			return err
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

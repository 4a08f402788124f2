package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// root is the repository's directory, as tests of this package see it.
const root = "../.."

// pages returns the repository's pages, by their path in it.
func pages(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "dist") {
			return fs.SkipDir
		}
		if strings.HasSuffix(p, ".md") {
			name, err := filepath.Rel(root, p)
			out = append(out, name)
			return err
		}
		return nil
	})
	require.NoError(t, err)
	require.Contains(t, out, "CONTRIBUTING.md")
	return out
}

var (
	mdLink = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	goFile = regexp.MustCompile("`([a-z][a-z0-9_/]*/[a-z0-9_]+\\.go)`")
)

// TestPagesNameFilesThatExist follows the links of every page, and looks for
// the files of ours that it names in code type with their directory.
func TestPagesNameFilesThatExist(t *testing.T) {
	named := map[string]int{}
	for _, page := range pages(t) {
		text, err := os.ReadFile(filepath.Join(root, page))
		require.NoError(t, err)
		var files []string
		for _, m := range mdLink.FindAllStringSubmatch(string(text), -1) {
			files = append(files, path.Join(path.Dir(page), m[1]))
		}
		for _, m := range goFile.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(root, strings.Split(m[1], "/")[0])); err == nil {
				files = append(files, m[1]) // else it is of another repository
			}
		}
		for _, file := range files {
			_, err := os.Stat(filepath.Join(root, file))
			require.NoError(t, err, "%s names %s", page, file)
			named[page]++
		}
	}
	require.Greater(t, named["docs/architecture.md"], 50)
	require.Greater(t, named["CONTRIBUTING.md"], 10)
}

// TestRaceStageChoosesWhatRunsInParallel: the store's tests take too long under
// the race detector to run all of them, so `make test-race` names those in
// which goroutines meet. A new one has to be among them.
func TestRaceStageChoosesWhatRunsInParallel(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^STORE_RACES := (\S+)$`).FindSubmatch(makefile)
	require.NotNil(t, line)
	chosen := regexp.MustCompile(string(line[1]))

	files, err := filepath.Glob(filepath.Join(root, "nodeagent/store/*_test.go"))
	require.NoError(t, err)
	bodies := map[string]*ast.BlockStmt{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				bodies[fn.Name.Name] = fn.Body
			}
		}
	}
	var left []string
	parallel := 0
	for _, name := range slices.Sorted(maps.Keys(bodies)) {
		if !strings.HasPrefix(name, "Test") || name == "TestMain" || !startsGoroutines(bodies[name]) {
			continue
		}
		parallel++
		if !chosen.MatchString(name) {
			left = append(left, name)
		}
	}
	require.Empty(t, left, "add these to STORE_RACES in the Makefile")
	require.Greater(t, parallel, 3)
}

// startsGoroutines reports whether there is a go statement in a body, or a call
// of a method Go, as those of sync.WaitGroup and errgroup.Group.
func startsGoroutines(body *ast.BlockStmt) (starts bool) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			starts = true
		case *ast.CallExpr:
			s, ok := n.Fun.(*ast.SelectorExpr)
			starts = starts || ok && s.Sel.Name == "Go"
		}
		return !starts
	})
	return starts
}

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A package's page may have a map: lines that begin with a file's name and say
// what is in it.
var (
	mapLine  = regexp.MustCompile(`(?m)^\t[a-z][a-z0-9_]*\.go\s`)
	fileName = regexp.MustCompile(`\b[a-z][a-z0-9_]*\.go\b`)
)

// TestMapsAreTrue proves that a package's map names every file of the package,
// and none that is not there.
func TestMapsAreTrue(t *testing.T) {
	maps := 0
	require.NoError(t, filepath.WalkDir("../..", func(dir string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if name := e.Name(); name == "testdata" || name == "node_modules" ||
			strings.HasPrefix(name, ".") && name != ".." {
			return filepath.SkipDir
		}
		page, files := packagePage(t, dir)
		if !mapLine.MatchString(page) {
			return nil
		}
		maps++
		named := fileName.FindAllString(page, -1)
		for _, file := range files {
			assert.Contains(t, named, file, "%s: the map in the package's page does not name it",
				filepath.Join(dir, file))
		}
		for _, line := range mapLine.FindAllString(page, -1) {
			file := strings.TrimSpace(line)
			assert.Contains(t, files, file, "%s: the map in the package's page names it", filepath.Join(dir, file))
		}
		return nil
	}))
	assert.GreaterOrEqual(t, maps, 6, "packages with a map")
}

// packagePage returns the comment on a package, and its files but doc.go, tests
// and what is generated.
func packagePage(t *testing.T, dir string) (page string, files []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil,
			parser.ParseComments|parser.PackageClauseOnly)
		require.NoError(t, err)
		page += file.Doc.Text()
		if name != "doc.go" && !ast.IsGenerated(file) {
			files = append(files, name)
		}
	}
	slices.Sort(files)
	return page, files
}

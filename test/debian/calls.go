package debian

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Calls returns the programs that Go sources below the directory start by a
// literal name: what the repository's programs and tests call on a machine.
// Each comes with the files that call it.
func Calls(root string) (map[string][]string, error) {
	found := map[string]map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != root:
			return fs.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		programs, err := callsOf(path)
		for _, program := range programs {
			if found[program] == nil {
				found[program] = map[string]bool{}
			}
			found[program][path] = true
		}
		return err
	})

	calls := map[string][]string{}
	for program, files := range found {
		calls[program] = slices.Sorted(maps.Keys(files))
	}
	return calls, err
}

// runners are the functions that start a program, with the place of its name
// among their arguments: package exec's, and the tests' own by their names.
var runners = map[string]int{
	"exec.Command": 0, "exec.CommandContext": 1, "exec.LookPath": 0,
	"command": 1, "testroot.Command": 1, "sh": 1,
}

func callsOf(path string) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var programs []string
	ast.Inspect(file, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		place, ok := runners[nameOf(call.Fun)]
		if !ok || place >= len(call.Args) {
			return true
		}
		literal, ok := call.Args[place].(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return true
		}
		// A script's or a command line's first word is the program.
		if text, err := strconv.Unquote(literal.Value); err == nil {
			if words := strings.Fields(text); len(words) > 0 {
				programs = append(programs, words[0])
			}
		}
		return true
	})
	return programs, nil
}

// nameOf is the function's name, with its package where it has one.
func nameOf(function ast.Expr) string {
	switch f := function.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if pkg, ok := f.X.(*ast.Ident); ok {
			return pkg.Name + "." + f.Sel.Name
		}
	}
	return ""
}

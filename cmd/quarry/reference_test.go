package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/quarry-storage/quarry/cmd/internal/admin"
	"github.com/quarry-storage/quarry/nodeagent"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/provisioner"
)

var update = flag.Bool("update", false, "write docs/reference instead of comparing with it")

// TestReferenceIsCurrent compares docs/reference with what the program says of
// itself. `make generate` writes it.
func TestReferenceIsCurrent(t *testing.T) {
	for name, text := range map[string]string{
		"commands.md": commandsReference(), "metrics.md": metricsReference(t), "options.md": optionsReference(), "reasons.md": reasonsReference(t),
	} {
		path := filepath.Join("../../docs/reference", name)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
			continue
		}
		have, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(have), "%s is out of date: make generate", path)
	}
}

func commandsReference() string {
	var b strings.Builder
	b.WriteString("# Commands and flags\n\nGenerated from the programs (`make generate`).\n")
	describeCommands(&b, newRootCommand())
	describeCommands(&b, admin.NewPlugin(version, commit))
	return b.String()
}

// describeCommands describes the commands below a parent that do something.
func describeCommands(b *strings.Builder, parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		switch {
		case cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion":
		case cmd.HasSubCommands():
			fmt.Fprintf(b, "\n## %s\n\n%s\n", cmd.CommandPath(), cmd.Long)
			describeCommands(b, cmd)
		default:
			describeCommand(b, cmd)
		}
	}
}

func describeCommand(b *strings.Builder, cmd *cobra.Command) {
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	_, arguments, _ := strings.Cut(cmd.Use, " ")
	if strings.HasPrefix(arguments, "-") {
		arguments = ""
	}
	fmt.Fprintf(b, "\n## %s\n\n%s\n", strings.TrimSpace(cmd.CommandPath()+" "+arguments), text)
	if cmd.Example != "" {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.TrimPrefix(strings.ReplaceAll(cmd.Example, "\n  ", "\n"), "  "))
	}
	b.WriteString("\n| flag | default | meaning |\n|---|---|---|\n")
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value := f.DefValue
		if value == "" || value == "[]" {
			value = " "
		}
		fmt.Fprintf(b, "| `%s` | `%s` | %s |\n", name, value, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
}

// family is one metric as its help describes it.
type family struct{ name, labels, help string }

func metricsReference(t *testing.T) string {
	agent := prometheus.NewRegistry()
	_, err := nodeagent.New(nodeagent.Options{Node: "node", Config: &rest.Config{}, Registry: agent,
		Store: store.New(store.Options{})})
	require.NoError(t, err)
	controller := prometheus.NewRegistry()
	_, err = provisioner.NewMetrics(controller)
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString("# Metrics\n\nGenerated from the program (`make generate`). Both kinds of process also serve what Go and its process say of themselves.\n")
	for _, part := range []struct {
		title    string
		registry *prometheus.Registry
	}{{"Agent", agent}, {"Controller", controller}} {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | labels | meaning |\n|---|---|---|\n", part.title)
		for _, f := range families(part.registry) {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, f.labels, f.help)
		}
	}
	return b.String()
}

// families describes what a registry would collect, also metrics that have no
// value yet.
func families(r *prometheus.Registry) []family {
	descriptions := make(chan *prometheus.Desc, 1000)
	go func() { r.Describe(descriptions); close(descriptions) }()
	var out []family
	for d := range descriptions {
		// Desc has no accessors; its text is Desc{fqName: "...", help: "...",
		// ..., variableLabels: {...}}.
		text := d.String()
		out = append(out, family{name: between(text, `fqName: "`, `"`), help: between(text, `help: "`, `", `), labels: between(text, "variableLabels: {", "}")})
	}
	slices.SortFunc(out, func(a, b family) int { return strings.Compare(a.name, b.name) })
	return slices.Compact(out)
}

func between(text, after, before string) string {
	_, rest, _ := strings.Cut(text, after)
	part, _, _ := strings.Cut(rest, before)
	return part
}

func optionsReference() string {
	var b strings.Builder
	b.WriteString("# Options of mkfs and mount\n\nGenerated from the program (`make generate`). What is not listed is refused, with the reason in the claim's event: " +
		"other devices and files, what forces, what can lose data, and what the oldest supported kernel does not mount.\n")
	for _, t := range filesystem.Types() {
		fmt.Fprintf(&b, "\n## mkfs.%s\n\nThe class's parameter `mkfsOptions`.\n\n| option | value |\n|---|---|\n", t)
		optionRows(&b, filesystem.AllowedMkfsOptions(t))
	}
	b.WriteString("\n## mount, every filesystem\n\nThe class's field `mountOptions`. `nosuid` and `nodev` are on unless `suid` and `dev` are asked for.\n\n")
	var all []string
	for _, name := range slices.Sorted(maps.Keys(mount.AllowedOptions(""))) {
		all = append(all, "`"+name+"`")
	}
	fmt.Fprintln(&b, strings.Join(all, ", "))
	for _, t := range filesystem.Types() {
		fmt.Fprintf(&b, "\n## mount, %s\n\n| option | value |\n|---|---|\n", t)
		optionRows(&b, mount.AllowedOptions(string(t)))
	}
	return b.String()
}

func optionRows(b *strings.Builder, options map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		fmt.Fprintf(b, "| `%s` | %s |\n", name, options[name])
	}
}

func reasonsReference(t *testing.T) string {
	var b strings.Builder
	b.WriteString("# Reasons\n\nOf conditions and events. Generated from the program (`make generate`). None is ever renamed.\n")
	for _, from := range []struct{ file, prefix string }{
		{"../../api/v1alpha1/reasons.go", "Reason"}, {"../../api/v1alpha1/events.go",
			"Event"}, {"../../nodeagent/disk/offline.go", "Offline"},
	} {
		file, err := parser.ParseFile(token.NewFileSet(), from.file, nil, parser.ParseComments)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			if group, ok := decl.(*ast.GenDecl); ok && group.Tok == token.CONST {
				describeReasons(&b, group, from.prefix)
			}
		}
	}
	return b.String()
}

// describeReasons makes a table of the constants of one block whose names begin
// with the prefix. Each has a comment of its own, above it or behind it, or
// shares that of the one above.
func describeReasons(b *strings.Builder, group *ast.GenDecl, prefix string) {
	var rows []string
	meaning := ""
	for _, spec := range group.Specs {
		value := spec.(*ast.ValueSpec)
		name := value.Names[0].Name
		literal, ok := value.Values[0].(*ast.BasicLit)
		if !ok || !strings.HasPrefix(name, prefix) {
			continue
		}
		if text := value.Doc.Text() + value.Comment.Text(); text != "" {
			meaning = strings.Join(strings.Fields(text), " ")
			for _, lead := range []string{name + ": ", name + ", ", name + " "} {
				meaning = strings.TrimPrefix(meaning, lead)
			}
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s |", strings.Trim(literal.Value, `"`), meaning))
	}
	if len(rows) > 0 {
		fmt.Fprintf(b, "\n%s\n\n| reason | meaning |\n|---|---|\n%s\n",
			strings.TrimSpace(strings.ReplaceAll(group.Doc.Text(), "\n", " ")), strings.Join(rows,
				"\n"))
	}
}

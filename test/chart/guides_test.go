package chart

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/strvals"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
	"sigs.k8s.io/yaml"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// fence is one block between ``` of a page.
type fence struct {
	page, language, text string
}

var fences = regexp.MustCompile("(?ms)^( *)```(\\w*)\n(.*?)^ *```")

// blocks returns the blocks of the pages that people follow: README, guides, the
// runbook and the examples.
func blocks(t *testing.T) (found []fence) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(repository, path)
		require.NoError(t, err)
		switch {
		case d.IsDir() && slices.Contains([]string{".git", "bin", "dist", "docs/reference", "docs/decisions", "test"}, name):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".md"):
			return nil
		}
		for _, m := range fences.FindAllStringSubmatch(readFile(t, name), -1) {
			text := strings.ReplaceAll("\n"+m[3], "\n"+m[1], "\n")[1:] // a block within a list
			found = append(found, fence{name, m[2], text})
		}
		return nil
	}))
	require.Greater(t, len(found), 60)
	return found
}

// noCommands are blocks without a language that are no commands, by their first
// words.
var noCommands = []string{
	"PVC ──", "api/v1alpha1/ ", "claim ", "held  =", "# /etc/udev/rules.d/",
}

// programs are those that pages call, with what is checked of each call. Nil: the
// program is not ours, and its arguments are its own.
var programs = map[string]func(*testing.T, fence, []string){
	"kubectl": checkKubectl, "helm": checkHelm, "make": checkMake, "quarry": checkQuarry, "docker": checkDocker,

	"grpcurl": nil, "git": nil, "jq": nil, "ctr": nil, "nomad": nil,
	"mkfs.xfs": nil, "mkfs.ext4": nil, "blkid": nil, "mount": nil, "umount": nil, "btrfs": nil,
	"mkdir": nil, "rmdir": nil, "echo": nil, "install": nil,
}

// TestCommandsOfThePages reads each command of the pages as a shell does, and
// looks whether what it names is there: commands and flags of our programs,
// targets of the Makefile, files, values of the chart, kinds.
func TestCommandsOfThePages(t *testing.T) {
	calls := 0
	for _, b := range blocks(t) {
		script := ""
		switch {
		case b.language == "console":
			script = typed(b.text)
		case b.language == "" || b.language == "sh":
			if slices.ContainsFunc(noCommands, func(begin string) bool {
				return strings.HasPrefix(strings.TrimSpace(b.text), begin)
			}) {
				continue
			}
			script = b.text
		default:
			continue
		}
		file, err := syntax.NewParser().Parse(strings.NewReader(script), b.page)
		require.NoError(t, err, "%s:\n%s", b.page, script)
		own := map[string]bool{} // functions of the block
		syntax.Walk(file, func(n syntax.Node) bool {
			switch n := n.(type) {
			case *syntax.FuncDecl:
				own[n.Name.Value] = true
			case *syntax.CallExpr:
				words := literals(t, n.Args)
				if len(words) > 2 && words[0] == "xargs" { // what it calls, with some words behind it
					words = slices.DeleteFunc(words[1:], func(w string) bool { return w == "-r" })
				}
				if len(words) > 0 && !own[words[0]] {
					calls++
					check, known := programs[words[0]]
					require.True(t, known, "%s: a program that no page calls yet: %v", b.page, words)
					if check != nil {
						check(t, b, words[1:])
					}
				}
			}
			return true
		})
	}
	require.Greater(t, calls, 60)
}

// typed returns what is typed at the prompts of a block that shows answers too.
// A command goes on until its quotes are closed.
func typed(text string) string {
	var out []string
	open := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		command, prompt := line, false
		for _, mark := range []string{"$ ", "# "} {
			if rest, is := strings.CutPrefix(line, mark); is && !open {
				command, prompt = rest, true
			}
		}
		if prompt || open {
			out = append(out, command)
			open = open != (strings.Count(command, "'")%2 == 1)
		}
	}
	return strings.Join(out, "\n") + "\n"
}

// literals are the words of a command without their quotes. What a shell would
// put in has some text.
func literals(t *testing.T, args []*syntax.Word) (words []string) {
	t.Helper()
	config := &expand.Config{
		Env:      expand.FuncEnviron(func(string) string { return "value" }),
		CmdSubst: func(w io.Writer, _ *syntax.CmdSubst) error { _, err := w.Write([]byte("output")); return err },
	}
	for _, arg := range args {
		word, err := expand.Literal(config, arg)
		require.NoError(t, err)
		words = append(words, word)
	}
	return words
}

// flagOf returns the flag that a word begins with, "" if it is none.
func flagOf(word string) string {
	if !strings.HasPrefix(word, "-") || word == "-" {
		return ""
	}
	name, _, _ := strings.Cut(word, "=")
	return name
}

// commandsReference is the generated reference: the flags of each command of our
// programs, and for those with commands below them nil.
func commandsReference(t *testing.T) map[string][]string {
	t.Helper()
	commands := map[string][]string{}
	for _, section := range strings.Split(readFile(t, "docs/reference/commands.md"), "\n## ")[1:] {
		title, _, _ := strings.Cut(section, "\n")
		var path []string // without the arguments
		for word := range strings.FieldsSeq(title) {
			if word != strings.ToLower(word) || strings.ContainsAny(word, "[]<>.") {
				break
			}
			path = append(path, word)
		}
		flags := []string{"--help", "-h"}
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]*)`").FindAllStringSubmatch(section, -1) {
			flags = append(flags, strings.Split(m[1], ", ")...)
		}
		commands[strings.Join(path, " ")] = flags
	}
	require.Contains(t, commands, "quarry verify")
	require.Contains(t, commands["kubectl quarry recover"], "--take-over")
	return commands
}

// checkOurs looks a command of ours up in the reference.
func checkOurs(t *testing.T, b fence, words []string) {
	t.Helper()
	commands := commandsReference(t)
	if len(words) == 2 && flagOf(words[1]) == "--help" || slices.Equal(words, []string{"kubectl", "quarry", "--help"}) {
		return
	}
	name := ""
	for n := len(words); n > 1 && name == ""; n-- {
		if _, is := commands[strings.Join(words[:n], " ")]; is {
			name = strings.Join(words[:n], " ")
		}
	}
	require.NotEmpty(t, name, "%s: there is no command %v", b.page, words)
	for _, word := range words {
		if flag := flagOf(word); flag != "" {
			require.Contains(t, commands[name], flag, "%s: %v", b.page, words)
		}
	}
}

func checkQuarry(t *testing.T, b fence, args []string) {
	checkOurs(t, b, append([]string{"quarry"}, args...))
}

// kubectlFlags are the flags that pages use, by verb; what stands under "" is for
// all of them.
var kubectlFlags = map[string][]string{
	"":         {"-n", "--namespace"},
	"get":      {"-o", "-l", "--field-selector", "--show-labels", "--raw"},
	"describe": {"-l"}, "logs": {"-c"}, "exec": {"-c"}, "patch": {"-p"},
	"apply":  {"-f", "-k", "--server-side", "--force-conflicts"},
	"delete": {"-f", "-l", "--wait", "--force"},
	"create": {"--clusterrole", "--group"}, "label": {}, "rollout": {}, "taint": {}, "annotate": {},
}

// switches are those of them that have no word behind them.
var switches = []string{"--show-labels", "--server-side", "--force-conflicts", "--force"}

// kinds are the names that kubectl knows of what pages speak of.
func kinds(t *testing.T) []string {
	t.Helper()
	names := []string{
		"pod", "pods", "pvc", "pv", "node", "nodes", "namespace", "clusterrolebinding", "deploy", "ds", "status",
		"csinodes", "csistoragecapacities",
	}
	crds, err := filepath.Glob(filepath.Join(repository, "charts/quarry/crds/*.yaml"))
	require.NoError(t, err)
	for _, crd := range crds {
		var c struct {
			Metadata struct{ Name string }
			Spec     struct{ Names struct{ ShortNames []string } }
		}
		require.NoError(t, yaml.Unmarshal([]byte(readFile(t, "charts/quarry/crds/"+filepath.Base(crd))), &c))
		names = append(append(names, c.Metadata.Name), c.Spec.Names.ShortNames...)
	}
	require.Contains(t, names, "qv")
	return names
}

func checkKubectl(t *testing.T, b fence, args []string) {
	t.Helper()
	if args[0] == "quarry" {
		checkOurs(t, b, append([]string{"kubectl"}, args...))
		return
	}
	if end := slices.Index(args, "--"); end >= 0 {
		if inner := args[end+1:]; inner[0] == "/quarry" {
			checkQuarry(t, b, inner[1:])
		}
		args = args[:end]
	}
	var plain []string
	var flags [][2]string // with the word behind it
	for i := 0; i < len(args); i++ {
		flag := flagOf(args[i])
		switch {
		case flag == "":
			plain = append(plain, args[i])
		case strings.Contains(args[i], "=") || slices.Contains(switches, flag):
			flags = append(flags, [2]string{flag, ""})
		default:
			require.Less(t, i+1, len(args), "%s: %v", b.page, args)
			i++
			flags = append(flags, [2]string{flag, args[i]})
		}
	}
	require.NotEmpty(t, plain)
	verb := plain[0]
	allowed, known := kubectlFlags[verb]
	require.True(t, known, "%s: kubectl %s", b.page, verb)
	files := false
	for _, f := range flags {
		require.Contains(t, append(kubectlFlags[""], allowed...), f[0], "%s: kubectl %v", b.page, args)
		switch f[0] {
		case "-f", "-k":
			files = true
			requireFile(t, b, f[1])
			if f[0] == "-k" {
				requireFile(t, b, filepath.Join(f[1], "kustomization.yaml"))
			}
		case "-p":
			require.True(t, json.Valid([]byte(f[1])), "%s: %s", b.page, f[1])
		}
	}
	if len(plain) < 2 || files || verb == "logs" || verb == "exec" {
		return
	}
	for kind := range strings.SplitSeq(plain[1], ",") {
		kind, _, _ := strings.Cut(kind, "/")
		require.Contains(t, kinds(t), kind, "%s: kubectl %v", b.page, args)
	}
}

// requireFile looks for what a page names: beside it, or from the repository's
// root.
func requireFile(t *testing.T, b fence, name string) {
	t.Helper()
	for _, from := range []string{repository, filepath.Join(repository, filepath.Dir(b.page))} {
		if _, err := os.Stat(filepath.Join(from, name)); err == nil {
			return
		}
	}
	require.Fail(t, "there is no such file", "%s names %s", b.page, name)
}

// ownValues is the name of the file that stands for the reader's own values.
const ownValues = "my-values.yaml"

func checkHelm(t *testing.T, b fence, args []string) {
	t.Helper()
	require.Contains(t, []string{"install", "upgrade", "uninstall", "template"}, args[0], b.page)
	set := values{}
	for i := 1; i < len(args); i++ {
		switch flag := flagOf(args[i]); flag {
		case "":
			if strings.Contains(args[i], "/") {
				requireFile(t, b, filepath.Join(args[i], "Chart.yaml"))
			}
		case "-n", "--namespace":
			i++
		case "-f":
			i++
			require.Equal(t, ownValues, args[i], b.page)
		case "--set":
			i++
			require.NoError(t, strvals.ParseInto(args[i], set), b.page)
		default:
			require.Fail(t, "a flag of helm that no page uses yet", "%s: %v", b.page, args)
		}
	}
	_, err := renderFiles(t, set) // the schema refuses what it does not know
	require.NoError(t, err, "%s: %v", b.page, args)
}

func checkMake(t *testing.T, b fence, args []string) {
	t.Helper()
	makefile := readFile(t, "Makefile")
	for _, arg := range args {
		if variable, _, is := strings.Cut(arg, "="); is {
			require.Regexp(t, `\b`+regexp.QuoteMeta(variable)+`\b`, makefile, "%s: make %v", b.page, args)
			continue
		}
		require.Regexp(t, "(?m)^"+regexp.QuoteMeta(arg)+":", makefile, "%s: make %v", b.page, args)
	}
}

func checkDocker(t *testing.T, b fence, args []string) {
	t.Helper()
	if at := slices.Index(args, "--build-arg"); at >= 0 {
		name, _, _ := strings.Cut(args[at+1], "=")
		require.Contains(t, readFile(t, "Dockerfile"), "\nARG "+name, b.page)
	}
}

// TestFilesOfThePages decodes each file that a page shows: objects strictly,
// values of the chart by its schema, parameters as the provisioner does.
func TestFilesOfThePages(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	ours := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var known map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(readFile(t, "charts/quarry/values.yaml")), &known))

	files := 0
	for _, b := range blocks(t) {
		if b.language != "yaml" {
			continue
		}
		files++
		var content map[string]any
		require.NoError(t, yaml.UnmarshalStrict([]byte(b.text), &content), "%s:\n%s", b.page, b.text)
		has := func(keys ...string) bool {
			return slices.ContainsFunc(keys, func(key string) bool { _, is := content[key]; return is })
		}
		switch version, _ := content["apiVersion"].(string); {
		case strings.HasPrefix(version, v1alpha1.GroupVersion.Group):
			_, _, err := ours.Decode([]byte(b.text), nil, nil)
			require.NoError(t, err, "%s:\n%s", b.page, b.text)
		case version != "":
			objects := decode(t, b.page, b.text)
			require.NotEmpty(t, objects, "%s:\n%s", b.page, b.text)
			for _, class := range of[*storagev1.StorageClass](objects) {
				_, err := parameters.Parse(class.Parameters)
				require.NoError(t, err, b.page)
			}
		case has("machine"): // of Talos
		case has("volumes"):
			var pod corev1.PodSpec
			require.NoError(t, yaml.UnmarshalStrict([]byte(b.text), &pod), b.page)
		case has("provisioner", "allowedTopologies", "parameters"):
			var class storagev1.StorageClass
			require.NoError(t, yaml.UnmarshalStrict([]byte(b.text), &class), b.page)
			_, err := parameters.Parse(class.Parameters)
			require.NoError(t, err, b.page)
		default:
			for key := range content {
				require.Contains(t, known, key, "%s: neither an object nor values of the chart", b.page)
			}
			rendered, err := renderFiles(t, content)
			require.NoError(t, err, "%s:\n%s", b.page, b.text)
			require.NotEmpty(t, rendered)
		}
	}
	require.Greater(t, files, 10)
}

// TestCommandsInTheText looks at what pages name of our programs between words.
// There a command may be unfinished, so only its name and its flags are looked
// at.
func TestCommandsInTheText(t *testing.T) {
	commands := commandsReference(t)
	named := 0
	code := regexp.MustCompile("`((?:kubectl )?quarry [^`]*|make [^`]*)`")
	for _, page := range []string{
		"README.md", "RELEASE.md", "CONTRIBUTING.md", "docs/*.md", "docs/guides/*.md", "examples/*/README.md",
	} {
		files, err := filepath.Glob(filepath.Join(repository, page))
		require.NoError(t, err)
		require.NotEmpty(t, files, page)
		for _, file := range files {
			name, err := filepath.Rel(repository, file)
			require.NoError(t, err)
			text := fences.ReplaceAllString(readFile(t, name), "")
			for _, m := range code.FindAllStringSubmatch(text, -1) {
				words := strings.Fields(strings.TrimRight(m[1], ".… "))
				named++
				b := fence{page: name}
				if words[0] == "make" {
					if !strings.ContainsAny(m[1], `"*`) {
						checkMake(t, b, words[1:])
					}
					continue
				}
				prefix := words
				for len(prefix) > 1 && commands[strings.Join(prefix, " ")] == nil {
					prefix = prefix[:len(prefix)-1]
				}
				flags, is := commands[strings.Join(prefix, " ")]
				require.True(t, is || isGroup(commands, words), "%s: there is no command `%s`", b.page, m[1])
				for _, word := range words {
					if flag := flagOf(word); is && flag != "" {
						require.Contains(t, flags, flag, "%s: `%s`", b.page, m[1])
					}
				}
			}
		}
	}
	require.Greater(t, named, 40)
}

// isGroup reports whether words name commands that are below them.
func isGroup(commands map[string][]string, words []string) bool {
	for name := range commands {
		if strings.HasPrefix(name, strings.Join(words, " ")+" ") {
			return true
		}
	}
	return false
}

// TestCommandsThatAreWrong proves that the check sees what it is for.
func TestCommandsThatAreWrong(t *testing.T) {
	commands := commandsReference(t)
	require.NotContains(t, commands, "quarry lst")
	require.NotContains(t, commands["quarry ls"], "--pools")
	require.NotContains(t, kinds(t), "pool.quarry.storage")
	require.Equal(t, "a 'b\nc'\nd\n", typed("$ a 'b\nc'\nanswer\n# d\nanswer\n"))
	_, err := syntax.NewParser().Parse(bytes.NewBufferString("echo 'not closed"), "")
	require.Error(t, err)
	_, err = renderFiles(t, values{"csi": values{"enable": true}})
	require.Error(t, err)
}

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quarry-storage/quarry/test/measure"
	"github.com/quarry-storage/quarry/test/testbed"
)

// Config is one run.
type Config struct {
	Sections   []string // names of what to measure; none: everything
	Repository string   // the root of the checkout
	Image      string   // the tarball of Quarry's image
	Self       string   // this program, which is called with "floor KUBECONFIG" for the floor
	Page       string   // the Markdown page whose blocks are written
	Out        string   // the directory for the results as JSON, and the plots
	Rounds     int      // of what is measured one by one
	Log        io.Writer
}

const (
	node       = "node1"
	namespace  = "bench"
	floorClass = "bench-floor"
)

// kinds are the volumes that are compared, the floor first.
var kinds = []struct{ class, name string }{
	{floorClass, "floor"},
	{"bench-directory", "directory, ext4, none"},
	{"bench-btrfs", "directory, btrfs"},
	{"bench-image", "image, ext4"},
}

// sections are all measurements, in the order of the page.
var sections = []struct {
	name string
	run  func(*bench, context.Context, *Section) error
}{
	{"bind", (*bench).bind},
	{"peers", (*bench).peers},
	{"pods", (*bench).pods},
	{"io", (*bench).io},
	{"delete", (*bench).deletion},
	{"footprint", (*bench).footprint},
	{"look", (*bench).look},
}

// alone are the sections that need no cluster.
var alone = []string{"look"}

// Section is what one measurement found.
type Section struct {
	Name    string                  `json:"name"`
	Origin  measure.Origin          `json:"origin"`
	Notes   []string                `json:"notes,omitempty"`
	Tables  []*measure.Table        `json:"tables"`
	Plots   map[string]measure.Bars `json:"plots,omitempty"`
	Details map[string]any          `json:"details,omitempty"`
	Broke   string                  `json:"broke,omitempty"`
}

// table begins a table of the section.
func (s *Section) table(head ...string) *measure.Table {
	t := &measure.Table{Head: head}
	s.Tables = append(s.Tables, t)
	return t
}

func (s *Section) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// bench is a run that goes on.
type bench struct {
	Config
	cluster  *testbed.Cluster
	kube     kubernetes.Interface
	claims   *measure.Claims
	sequence int
}

// Run makes a cluster, measures, writes what was found after each section, and
// takes the cluster away.
func Run(ctx context.Context, c Config) (err error) {
	chosen, err := choose(c.Sections)
	if err != nil {
		return err
	}
	b := &bench{Config: c}
	if slices.ContainsFunc(chosen, func(name string) bool { return !slices.Contains(alone, name) }) {
		if err := b.up(ctx); err != nil {
			return errors.Join(err, testbed.Down(context.WithoutCancel(ctx), c.Log))
		}
		defer func() { err = errors.Join(err, b.cluster.Down(context.WithoutCancel(ctx))) }()
	}
	for _, section := range sections {
		if !slices.Contains(chosen, section.name) {
			continue
		}
		b.say("%s", section.name)
		s := &Section{Name: section.name, Origin: measure.OriginOf(c.Repository), Plots: map[string]measure.Bars{},
			Details: map[string]any{}}
		failed := section.run(b, ctx, s)
		if failed != nil {
			s.Broke, _, _ = strings.Cut(failed.Error(), "\n")
		}
		if err := b.write(s); err != nil {
			return err
		}
		if failed != nil {
			return fmt.Errorf("%s: %w", section.name, failed)
		}
		b.say("%s: done in %s", section.name, time.Since(s.Origin.At).Round(time.Second))
	}
	return nil
}

func choose(names []string) ([]string, error) {
	var all []string
	for _, section := range sections {
		all = append(all, section.name)
	}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("there is no benchmark %q; there are %s", name, strings.Join(all, ", "))
		}
	}
	if len(names) == 0 {
		return all, nil
	}
	return names, nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.Log, "%s bench: %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// up makes the cluster and installs Quarry.
func (b *bench) up(ctx context.Context) error {
	if err := testbed.Down(ctx, b.Log); err != nil {
		return err
	}
	cluster, err := testbed.Up(ctx, testbed.Config{Nodes: 1, Log: b.Log, Pool: testbed.Disk{Size: 60 << 30},
		ExtraPools: []testbed.Disk{{Path: "/volumes-btrfs", Filesystem: "btrfs", Size: 60 << 30}}})
	if err != nil {
		return err
	}
	b.cluster = cluster
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig())
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 2000
	if b.kube, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if err := cluster.Load(ctx, b.Image); err != nil {
		return err
	}
	if _, err := cluster.Helm(ctx, "install", "quarry", filepath.Join(b.Repository, "charts/quarry"), "--namespace",
		"quarry-system", "--create-namespace",
		"--values", filepath.Join(b.Repository, "test/bench/values.yaml"), "--wait", "--timeout", "3m"); err != nil {
		return err
	}
	if _, err := b.kube.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := b.class(ctx, floorClass, measure.FloorProvisioner); err != nil {
		return err
	}
	b.claims, err = measure.NewClaims(ctx, b.kube, namespace)
	return err
}

func (b *bench) class(ctx context.Context, name, provisioner string) error {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	_, err := b.kube.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner,
		VolumeBindingMode: &wait}, metav1.CreateOptions{})
	return err
}

func (b *bench) names(what string, n int) []string {
	b.sequence++
	return measure.Names(fmt.Sprintf("%s-%d", what, b.sequence), n)
}

func wish(class, size string, names []string) measure.Wish {
	return measure.Wish{Names: names, Class: class, Size: size, Node: func(int) string { return node }}
}

// write writes a section's results: JSON, plots, and its block of the page.
func (b *bench) write(s *Section) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{s.Name + ".json": append(text, '\n')}
	for name, plot := range s.Plots {
		files[s.Name+"-"+name+".svg"] = []byte(plot.SVG())
	}
	if err := measure.WriteFiles(b.Out, files); err != nil {
		return err
	}
	return measure.ReplaceBlock(b.Page, s.Name, s.markdown(filepath.Base(b.Out)))
}

func (s *Section) markdown(plots string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "`make bench BENCH=%s`: %s.\n\n", s.Name, s.Origin)
	if s.Broke != "" {
		fmt.Fprintf(&b, "**It ended early: %s**\n\n", s.Broke)
	}
	for _, table := range s.Tables {
		b.WriteString(table.Markdown() + "\n")
	}
	for _, note := range s.Notes {
		b.WriteString("* " + note + "\n")
	}
	if len(s.Notes) > 0 {
		b.WriteString("\n")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Plots)) {
		fmt.Fprintf(&b, "![%s](%s/%s-%s.svg)\n", s.Plots[name].Title, plots, s.Name, name)
	}
	return b.String()
}

// processes finds processes of the machine, those inside nodes too, by what
// their command line contains.
func processes(contains ...string) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		line, err := os.ReadFile(entry)
		if err != nil {
			continue // it has ended
		}
		command := strings.ReplaceAll(string(line), "\x00", " ")
		if !slices.ContainsFunc(contains, func(part string) bool { return !strings.Contains(command, part) }) {
			var pid int
			if _, err := fmt.Sscanf(entry, "/proc/%d/cmdline", &pid); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// parts are the processes whose usage is measured, by the names that the page
// has for them.
var parts = []struct {
	name     string
	contains []string
}{
	{"API server", []string{"kube-apiserver", "--advertise-address=10.77."}}, // the testbed's, of all that may run here
	{"controller", []string{"quarry controller", "--agent-selector="}},
	{"agent", []string{"quarry agent"}},
	{"floor", []string{"bench floor "}},
}

// usage is the sum over the processes of each part.
func (b *bench) usage() (map[string]measure.Usage, error) {
	all := map[string]measure.Usage{}
	for _, part := range parts {
		pids, err := processes(part.contains...)
		if err != nil {
			return nil, err
		}
		var sum measure.Usage
		for _, pid := range pids {
			if usage, err := measure.UsageOf(pid); err == nil { // else it has ended
				sum.CPU += usage.CPU
				sum.Resident += usage.Resident
				sum.Peak += usage.Peak
			}
		}
		all[part.name] = sum
	}
	return all, nil
}

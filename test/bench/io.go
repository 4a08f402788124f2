package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/test/measure"
)

// place is somewhere to read and write.
type place struct {
	name  string
	class string // empty: a directory of the host
	block bool
	path  string // in the node
	found map[string][]float64
}

// load is something that fio does. Its figure is taken of the job's results.
type load struct {
	name, unit string
	higher     bool // is better
	args       []string
	figure     func(r fioJob) float64
}

// fioJob is what is read of fio's answer.
type fioJob struct {
	Read, Write struct {
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
	}
	Sync struct {
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	}
}

const ioSize = "512m"

var loads = []load{
	{"fdatasync after each append of 2,300 bytes, as etcd does, p50", "us", false,
		[]string{"--rw=write", "--ioengine=sync", "--fdatasync=1", "--bs=2300", "--size=22m"},
		func(r fioJob) float64 { return r.Sync.Latency.Percentile["50.000000"] / 1000 }},
	{"the same, p99", "us", false, nil, func(r fioJob) float64 {
		return r.Sync.Latency.Percentile["99.000000"] / 1000
	}},
	{"4 KiB random reads and writes, depth 16, reads", "IOPS", true,
		[]string{"--rw=randrw", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--bs=4k", "--size=" + ioSize,
			"--runtime=3", "--time_based"},
		func(r fioJob) float64 { return r.Read.IOPS }},
	{"1 MiB sequential writes", "MB/s", true,
		[]string{"--rw=write", "--ioengine=libaio", "--direct=1", "--iodepth=4", "--bs=1m", "--size=" + ioSize},
		func(r fioJob) float64 { return r.Write.BW / 1e6 }},
	{"1 MiB sequential reads", "MB/s", true,
		[]string{"--rw=read", "--ioengine=libaio", "--direct=1", "--iodepth=4", "--bs=1m", "--size=" + ioSize},
		func(r fioJob) float64 { return r.Read.BW / 1e6 }},
}

// io measures reading and writing in volumes beside a directory of the host on
// the same disk, in turns.
func (b *bench) io(ctx context.Context, s *Section) error {
	places := []*place{
		{name: "host directory, ext4", path: "/volumes/bench-io"},
		{name: "directory volume, ext4", class: "bench-directory"},
		{name: "host directory, btrfs", path: "/volumes-btrfs/bench-io"},
		{name: "directory volume, btrfs", class: "bench-btrfs"},
		{name: "image, ext4, thick", class: "bench-image"},
		{name: "image, ext4, thin", class: "bench-image-thin"},
		{name: "image, xfs, thick", class: "bench-image-xfs"},
		{name: "image, xfs, thin", class: "bench-image-xfs-thin"},
		{name: "raw block", class: "bench-image", block: true},
	}
	var names []string
	for _, p := range places {
		p.found = map[string][]float64{}
		claim, err := b.place(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if claim != "" {
			names = append(names, claim)
		}
	}
	for round := range min(b.Rounds, 3) {
		for _, p := range places {
			if err := b.fio(ctx, p); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		b.say("io: round %d done", round+1)
	}
	b.reportIO(s, places)
	for _, name := range names {
		if err := b.kube.CoreV1().PersistentVolumeClaims(namespace).Delete(ctx, name,
			metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// place makes a directory or a volume, and learns where it is. It returns the
// claim's name.
func (b *bench) place(ctx context.Context, p *place) (claim string, err error) {
	if p.class == "" {
		_, err := b.cluster.Exec(ctx, node, "mkdir", "-p", p.path)
		return "", err
	}
	claim = b.names("io", 1)[0]
	w := wish(p.class, "2Gi", []string{claim})
	if p.block {
		w.Mode = corev1.PersistentVolumeBlock
	}
	_, _, err = b.claims.Bind(ctx, w)
	if err != nil {
		return "", err
	}
	bound, err := b.kube.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	pv, err := b.kube.CoreV1().PersistentVolumes().Get(ctx, bound.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	p.path = pv.Spec.Local.Path
	return claim, nil
}

// fio runs all loads in a place, inside the node, and keeps their figures.
func (b *bench) fio(ctx context.Context, p *place) error {
	var job fioJob
	for _, l := range loads {
		if l.args != nil { // else it is another figure of the one before
			args := []string{"fio", "--name=bench", "--output-format=json", "--group_reporting"}
			if p.block {
				args = append(args, "--filename="+p.path)
			} else {
				args = append(args, "--filename="+p.path+"/bench.dat")
			}
			text, err := b.cluster.Exec(ctx, node, append(args, l.args...)...)
			if err != nil {
				return err
			}
			var answer struct{ Jobs []fioJob }
			if err := json.Unmarshal(text, &answer); err != nil {
				return fmt.Errorf("fio's answer: %w", err)
			}
			if len(answer.Jobs) != 1 {
				return fmt.Errorf("fio answered of %d jobs", len(answer.Jobs))
			}
			job = answer.Jobs[0]
			if !p.block {
				if _, err := b.cluster.Exec(ctx, node, "rm", "-f", p.path+"/bench.dat"); err != nil {
					return err
				}
			}
		}
		p.found[l.name] = append(p.found[l.name], l.figure(job))
	}
	return nil
}

func (b *bench) reportIO(s *Section, places []*place) {
	median := func(values []float64) float64 {
		sorted := slices.Sorted(slices.Values(values))
		return sorted[len(sorted)/2]
	}
	head := []string{""}
	for _, l := range loads {
		head = append(head, l.name+", "+l.unit)
	}
	t := s.table(head...)
	bars := measure.Bars{Title: "fdatasync after each append of 2,300 bytes", Unit: "us, median"}
	for _, p := range places {
		cells := []any{p.name}
		for _, l := range loads {
			value := median(p.found[l.name])
			cells = append(cells, fmt.Sprintf("%.0f (%.2f)", value, value/median(places[0].found[l.name])))
		}
		t.Row(cells...)
		bars.Bars = append(bars.Bars, measure.Bar{Name: p.name, Value: median(p.found[loads[0].name])})
	}
	s.Plots["fdatasync"] = bars
	s.note("Medians of %d rounds, the places in turns; in parentheses against the host's directory on the same ext4. "+
		"The disks are loop devices of the testbed, "+
		"over sparse files of this machine: read the ratios.", len(places[0].found[loads[0].name]))
}

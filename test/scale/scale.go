// Package scale measures Quarry's controller in clusters of up to thousands of
// nodes, on one machine: a real etcd, API server and controller manager, real
// controllers (a leader and a standby) of the built binary, and agents that
// answer from memory (package agents). The scheduler's part, choosing a node,
// is the benchmark's own: it writes the annotation.
package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/quarry-storage/quarry/test/measure"
)

// Config is one run.
type Config struct {
	Nodes, Volumes int
	// Rounds is how many claims are measured one after the other, Burst how
	// many at once.
	Rounds, Burst int
	// Rest is how long everything is left alone to see what it costs to do
	// nothing.
	Rest time.Duration
	// MemoryLimit is that of the controllers' container, in bytes: as there,
	// the collector stays below nine tenths of it. Nothing kills a controller
	// that needs more, so that it is seen how much that is. 0: no limit.
	MemoryLimit int64
	// Quarry is the built binary, Kube the directory of etcd's and Kubernetes'
	// programs, Self this program: called with "agents KUBECONFIG FILE" or
	// "floor KUBECONFIG" it is what Child runs.
	Quarry, Kube string
	Self         []string
	// Dir takes etcd's data and the logs; it should be in memory.
	Dir string
	Log io.Writer
}

const (
	class       = "scale"
	floorClass  = "scale-floor"
	claimSize   = "1Gi"
	poolSize    = int64(1) << 40
	measured    = "measured" // the namespace of what is measured
	leaderName  = "leader"
	standbyName = "standby"
)

// Result is what was found.
type Result struct {
	Nodes   int `json:"nodes"`
	Volumes int `json:"volumes"`

	LoadSeconds   float64 `json:"loadSeconds"`   // to write what is there from the beginning
	ServerSeconds float64 `json:"serverSeconds"` // until the API server is ready with it
	// From the first start of a leader to a capacity object for every node.
	PublishSeconds  float64 `json:"publishSeconds"`
	StartSeconds    float64 `json:"startSeconds"`    // from a leader's start to the first claim Bound
	FailoverSeconds float64 `json:"failoverSeconds"` // from kill -9 of the leader to a claim Bound by the standby
	// Median, from a Pool's new status to the capacity object that says so.
	FreshMillisecond float64 `json:"freshMillisecond"`
	FreshWorst       float64 `json:"freshWorstMillisecond"`

	One   Comparison `json:"one"`
	Many  Comparison `json:"many"`
	Gone1 Comparison `json:"oneDeleted"`
	Gone  Comparison `json:"manyDeleted"`

	// Requests of the API server for one volume's life in a burst, of Quarry's
	// and of the floor's; CPU of each process for it.
	Requests      measure.Requests   `json:"requestsPerVolume"`
	FloorRequests measure.Requests   `json:"floorRequestsPerVolume"`
	CPU           map[string]float64 `json:"cpuMillisecondsPerVolume"`
	FloorCPU      map[string]float64 `json:"floorCPUMillisecondsPerVolume"`

	AtRest map[string]Footprint `json:"atRest"` // by process
	Peaks  map[string]int64     `json:"peakBytes"`
	// Idle is the requests per minute while nothing happens.
	Idle measure.Requests `json:"requestsPerMinuteAtRest"`
}

// Comparison is one measurement of Quarry and of the floor in turns.
type Comparison struct {
	Quarry measure.Summary `json:"quarry"`
	Floor  measure.Summary `json:"floor"`
}

// Ratio is Quarry's median against the floor's.
func (c Comparison) Ratio() float64 { return c.Quarry.P50 / max(c.Floor.P50, 0.001) }

// Footprint is what a process takes while nothing happens.
type Footprint struct {
	CPUPercent float64 `json:"cpuPercent"` // of one core
	Resident   int64   `json:"residentBytes"`
}

// run is a run that goes on.
type run struct {
	Config
	*plane
	kube     kubernetes.Interface
	claims   *measure.Claims
	result   *Result
	sequence int
}

// Run makes a cluster, measures it and takes it away. What was measured before
// an error is returned with it.
func Run(ctx context.Context, c Config) (*Result, error) {
	p, err := newPlane(c.Dir, c.Kube)
	if err != nil {
		return nil, err
	}
	defer p.stopAll()
	r := &run{Config: c, plane: p, result: &Result{Nodes: c.Nodes, Volumes: c.Volumes, Peaks: map[string]int64{}}}
	for _, stage := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"make the control plane", r.prepare},
		{"load nodes and volumes", r.load},
		{"start a leader for the first time", r.publish},
		{"start a leader again", r.restart},
		{"start a standby", r.standby},
		{"rest", r.rest},
		{"one claim after the other", r.one},
		{"many claims at once", r.many},
		{"freshness of capacity", r.fresh},
		{"fail-over", r.failover},
	} {
		started := time.Now()
		r.say("%s", stage.name)
		if err := stage.do(ctx); err != nil {
			return r.result, fmt.Errorf("%d nodes, %d volumes: %s: %w%s", c.Nodes, c.Volumes, stage.name, err, r.logs())
		}
		r.say("%s: done in %s", stage.name, time.Since(started).Round(10*time.Millisecond))
	}
	return r.result, nil
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.Log, "%s scale %d/%d: %s\n", time.Now().Format(time.TimeOnly), r.Nodes, r.Volumes,
		fmt.Sprintf(format, args...))
}

// logs are the ends of the logs of what is measured, for an error.
func (r *run) logs() string {
	var all strings.Builder
	for _, name := range []string{leaderName, standbyName, "agents", "floor"} {
		if _, err := os.Stat(r.path(name + ".log")); err == nil {
			fmt.Fprintf(&all, "\n--- the end of %s:\n%s", r.path(name+".log"), tail(r.path(name+".log")))
		}
	}
	return all.String()
}

// publish starts a leader in a cluster that never had one.
func (r *run) publish(ctx context.Context) error {
	started := time.Now()
	if err := r.startController(leaderName); err != nil {
		return err
	}
	if err := r.waitCapacity(ctx); err != nil {
		return err
	}
	r.result.PublishSeconds = time.Since(started).Seconds()
	if err := r.peak(leaderName, "first start"); err != nil {
		return err
	}
	return r.settle(ctx, leaderName)
}

// waitCapacity waits until there is a capacity object for every node.
func (r *run) waitCapacity(ctx context.Context) error {
	return until(ctx, r.running[leaderName], "capacity objects", func() error {
		list, err := r.kube.StorageV1().CSIStorageCapacities(systemNamespace).List(ctx,
			metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		nodes := map[string]bool{}
		for i := range list.Items {
			if topology := list.Items[i].NodeTopology; topology != nil {
				nodes[topology.MatchLabels[corev1.LabelHostname]] = true
			}
		}
		if len(nodes) < r.Nodes+1 {
			return fmt.Errorf("for %d nodes of %d", len(nodes), r.Nodes+1)
		}
		return nil
	})
}

// restart starts a leader where everything is as it was, with a claim waiting
// for it.
func (r *run) restart(ctx context.Context) error {
	r.stop(leaderName, syscall.SIGTERM) // it gives its lease back
	bound := make(chan error, 1)
	started := time.Now()
	go func() {
		_, _, err := r.claims.Bind(ctx, r.wish(class, r.names("start", 1)))
		bound <- err
	}()
	if err := r.startController(leaderName); err != nil {
		return err
	}
	if err := <-bound; err != nil {
		return err
	}
	r.result.StartSeconds = time.Since(started).Seconds()
	if err := r.settle(ctx, leaderName); err != nil {
		return err
	}
	return r.peak(leaderName, "start")
}

func (r *run) standby(ctx context.Context) error {
	if err := r.startController(standbyName); err != nil {
		return err
	}
	if err := r.settle(ctx, standbyName); err != nil {
		return err
	}
	return r.peak(standbyName, "start")
}

// peak notes the highest memory of a process until now, and begins to count
// anew.
func (r *run) peak(name, what string) error {
	pid, err := r.pid(name)
	if err != nil {
		return err
	}
	usage, err := measure.UsageOf(pid)
	if err != nil {
		return err
	}
	r.result.Peaks[name+", "+what] = usage.Peak
	r.say("%s: %s, at most %d MiB", name, what, usage.Peak>>20)
	return measure.ResetPeak(pid)
}

// settle waits until processes use less than a twentieth of a core for two
// seconds, or for a minute.
func (r *run) settle(ctx context.Context, names ...string) error {
	const quiet, step, longest = 2 * time.Second, 250 * time.Millisecond, time.Minute
	for _, name := range names {
		pid, err := r.pid(name)
		if err != nil {
			return err
		}
		var seen []time.Duration
		for range longest / step {
			usage, err := measure.UsageOf(pid)
			if err != nil {
				return err
			}
			seen = append(seen, usage.CPU)
			if n := int(quiet / step); len(seen) > n && usage.CPU-seen[len(seen)-1-n] < quiet/20 {
				break
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(step):
			}
		}
	}
	return nil
}

// rest measures what it costs that nothing happens.
func (r *run) rest(ctx context.Context) error {
	names := []string{leaderName, standbyName, "agents", "kube-apiserver", "kube-controller-manager", "etcd"}
	if err := r.settle(ctx, leaderName, standbyName); err != nil {
		return err
	}
	before, err := r.snapshot(ctx, names)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(r.Rest): // the time itself is what is wanted here
	}
	after, err := r.snapshot(ctx, names)
	if err != nil {
		return err
	}
	took := after.at.Sub(before.at)
	r.result.AtRest = map[string]Footprint{}
	for _, name := range names {
		r.result.AtRest[name] = Footprint{
			CPUPercent: 100 * (after.usage[name].CPU - before.usage[name].CPU).Seconds() / took.Seconds(),
			Resident:   after.usage[name].Resident}
	}
	r.result.Idle = measure.Requests{}
	for name, count := range after.requests.Since(before.requests) {
		r.result.Idle[name] = count * float64(time.Minute) / float64(took)
	}
	return nil
}

// snapshot is what processes have used, and the API server has counted, until a
// moment.
type snapshot struct {
	at       time.Time
	usage    map[string]measure.Usage
	requests measure.Requests
}

func (r *run) snapshot(ctx context.Context, names []string) (s snapshot, err error) {
	s.usage = map[string]measure.Usage{}
	if s.requests, err = measure.RequestsOf(ctx, r.kube.CoreV1().RESTClient()); err != nil {
		return s, err
	}
	for _, name := range names {
		pid, err := r.pid(name)
		if err != nil {
			return s, err
		}
		if s.usage[name], err = measure.UsageOf(pid); err != nil {
			return s, err
		}
	}
	s.at = time.Now()
	return s, nil
}

// each is the processor time between two snapshots for one of n things, in
// milliseconds, by process.
func (s snapshot) each(before snapshot, n int) map[string]float64 {
	each := map[string]float64{}
	for name, usage := range s.usage {
		each[name] = measure.Milliseconds(usage.CPU-before.usage[name].CPU) / float64(max(n, 1))
	}
	return each
}

// names are names of claims that no other part of the run has.
func (r *run) names(what string, n int) []string {
	r.sequence++
	return measure.Names(fmt.Sprintf("%s-%d", what, r.sequence), n)
}

// wish is a wish for claims on nodes anywhere in the cluster.
func (r *run) wish(class string, names []string) measure.Wish {
	from := rand.IntN(r.Nodes)
	return measure.Wish{Names: names, Class: class, Size: claimSize, Node: func(i int) string {
		return nodeName((from + i*7) % r.Nodes)
	}}
}

// startFloor starts the provisioner that does no work.
func (r *run) startFloor(ctx context.Context) error {
	if _, err := r.start("floor",
		r.Self[0], nil, append(r.Self[1:], "floor", r.path("admin.kubeconfig"))...); err != nil {
		return err
	}
	// It works when it has bound something.
	names := r.names("warm", 1)
	if _, _, err := r.claims.Bind(ctx, r.wish(floorClass, names)); err != nil {
		return err
	}
	if _, _, err := r.claims.Delete(ctx, names); err != nil {
		return err
	}
	return r.settle(ctx, "floor")
}

// one makes and deletes claims one after the other, Quarry's and the floor's in
// turns.
func (r *run) one(ctx context.Context) error {
	if err := r.startFloor(ctx); err != nil {
		return err
	}
	bound, gone := map[string]measure.Times{}, map[string]measure.Times{}
	for range r.Rounds {
		for _, name := range []string{floorClass, class} {
			names := r.names("one", 1)
			times, _, err := r.claims.Bind(ctx, r.wish(name, names))
			if err != nil {
				return err
			}
			bound[name] = append(bound[name], times...)
			if times, _, err = r.claims.Delete(ctx, names); err != nil {
				return err
			}
			gone[name] = append(gone[name], times...)
		}
	}
	sum := func(times map[string]measure.Times) Comparison {
		return Comparison{Quarry: measure.Summarize(times[class], 0), Floor: measure.Summarize(times[floorClass], 0)}
	}
	r.result.One, r.result.Gone1 = sum(bound), sum(gone)
	return nil
}

// many makes and deletes claims at once: the floor's, then Quarry's.
func (r *run) many(ctx context.Context) error {
	processes := map[string][]string{
		floorClass: {"floor", "kube-apiserver", "kube-controller-manager", "etcd"},
		class:      {leaderName, standbyName, "agents", "kube-apiserver", "kube-controller-manager", "etcd"},
	}
	for _, name := range []string{floorClass, class} {
		before, err := r.snapshot(ctx, processes[name])
		if err != nil {
			return err
		}
		names := r.names("many", r.Burst)
		bound, wall, err := r.claims.Bind(ctx, r.wish(name, names))
		if err != nil {
			return err
		}
		boundSummary := measure.Summarize(bound, wall)
		if err := r.settle(ctx, processes[name][0]); err != nil {
			return err
		}
		gone, wall, err := r.claims.Delete(ctx, names)
		if err != nil {
			return err
		}
		goneSummary := measure.Summarize(gone, wall)
		if err := r.settle(ctx, processes[name][0]); err != nil { // what it does afterwards is part of a volume's life
			return err
		}
		after, err := r.snapshot(ctx, processes[name])
		if err != nil {
			return err
		}
		requests, cpu := after.requests.Since(before.requests).Each(r.Burst), after.each(before, r.Burst)
		if name == class {
			r.result.Many.Quarry, r.result.Gone.Quarry, r.result.Requests, r.result.CPU = boundSummary, goneSummary,
				requests, cpu
		} else {
			r.result.Many.Floor, r.result.Gone.Floor, r.result.FloorRequests, r.result.FloorCPU = boundSummary,
				goneSummary, requests, cpu
			r.stop("floor", syscall.SIGTERM)
		}
	}
	if err := r.peak(leaderName, "under load"); err != nil {
		return err
	}
	return r.peak(standbyName, "under load")
}

// fresh measures how long the scheduler is told what is not so any more: from a
// Pool's new status to the capacity object.
func (r *run) fresh(ctx context.Context) error {
	watch, err := newFreshness(ctx, r.config(admin))
	if err != nil {
		return err
	}
	defer watch.stop()
	var times measure.Times
	for i := range r.Rounds {
		wish := r.wish(class, r.names("fresh", 1))
		wish.Size = "100Gi" // a tenth of the pool: news that matters
		node := nodeName((i*13 + 5) % r.Nodes)
		wish.Node = func(int) string { return node }
		watch.expect(node)
		if _, _, err := r.claims.Bind(ctx, wish); err != nil {
			return err
		}
		took, err := watch.wait(ctx)
		if err != nil {
			return err
		}
		times = append(times, took)
		if _, _, err := r.claims.Delete(ctx, wish.Names); err != nil {
			return err
		}
	}
	r.result.FreshMillisecond, r.result.FreshWorst = measure.Milliseconds(times.Quantile(0.5)), measure.Milliseconds(
		times.Quantile(1))
	return nil
}

// failover kills the leader and makes a claim, which the standby binds once it
// has the lease.
func (r *run) failover(ctx context.Context) error {
	started := time.Now()
	r.stop(leaderName, syscall.SIGKILL)
	if _, _, err := r.claims.Bind(ctx, r.wish(class, r.names("failover", 1))); err != nil {
		return err
	}
	r.result.FailoverSeconds = time.Since(started).Seconds()
	return r.peak(standbyName, "taking over")
}

// repositoryDir is the root of the checkout, from the working directory
// upwards.
func repositoryDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "charts/quarry/crds")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the repository is not here: run this inside a checkout of the project")
}

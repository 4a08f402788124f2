package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/quarry-storage/quarry/test/measure"
)

// life is what was measured of one kind of volume.
type life struct {
	One, Gone1             measure.Times
	Hundred, Many, Deleted measure.Summary
	Requests               measure.Requests         // for one volume's life, of those at once
	CPU                    map[string]float64       // milliseconds for one volume's life, by part
	at                     map[string]measure.Usage // when it began
	counted                measure.Requests         // when it began
}

const (
	claimSize = "64Mi"
	burst     = 500
)

// bind measures the path from a claim to Bound, and back.
func (b *bench) bind(ctx context.Context, s *Section) error {
	stop, err := b.startFloor(ctx)
	if err != nil {
		return err
	}
	defer stop()
	lives := map[string]*life{}
	for _, kind := range kinds {
		lives[kind.class] = &life{}
	}
	for range b.Rounds {
		for _, kind := range kinds {
			if err := b.one(ctx, kind.class, lives[kind.class]); err != nil {
				return err
			}
		}
	}
	b.say("one by one: done")
	for _, kind := range kinds {
		if err := b.many(ctx, kind.class, lives[kind.class]); err != nil {
			return err
		}
		b.say("at once: %s: %.1f bound and %.1f deleted each second", kind.name, lives[kind.class].Many.Second,
			lives[kind.class].Deleted.Second)
	}
	b.reportBind(s, lives)
	return nil
}

// one makes and deletes one claim.
func (b *bench) one(ctx context.Context, class string, l *life) error {
	names := b.names("one", 1)
	bound, _, err := b.claims.Bind(ctx, wish(class, claimSize, names))
	if err != nil {
		return err
	}
	gone, _, err := b.claims.Delete(ctx, names)
	l.One, l.Gone1 = append(l.One, bound...), append(l.Gone1, gone...)
	return err
}

// many makes a hundred claims at once, then five hundred, and deletes them.
func (b *bench) many(ctx context.Context, class string, l *life) error {
	names := b.names("hundred", 100)
	times, wall, err := b.claims.Bind(ctx, wish(class, claimSize, names))
	if err != nil {
		return err
	}
	l.Hundred = measure.Summarize(times, wall)
	if _, _, err := b.claims.Delete(ctx, names); err != nil {
		return err
	}
	if err := b.quiet(ctx); err != nil {
		return err
	}

	if err := b.begin(ctx, l); err != nil {
		return err
	}
	names = b.names("many", burst)
	if times, wall, err = b.claims.Bind(ctx, wish(class, claimSize, names)); err != nil {
		return err
	}
	l.Many = measure.Summarize(times, wall)
	if times, wall, err = b.claims.Delete(ctx, names); err != nil {
		return err
	}
	l.Deleted = measure.Summarize(times, wall)
	return b.end(ctx, l, burst)
}

// begin notes what everything has used until now.
func (b *bench) begin(ctx context.Context, l *life) (err error) {
	if l.at, err = b.usage(); err != nil {
		return err
	}
	l.counted, err = measure.RequestsOf(ctx, b.kube.CoreV1().RESTClient())
	return err
}

// end notes what was used since, for each of n volumes, once everything is
// quiet: what comes afterwards belongs to it.
func (b *bench) end(ctx context.Context, l *life, n int) error {
	if err := b.quiet(ctx); err != nil {
		return err
	}
	requests, err := measure.RequestsOf(ctx, b.kube.CoreV1().RESTClient())
	if err != nil {
		return err
	}
	usage, err := b.usage()
	if err != nil {
		return err
	}
	l.Requests, l.CPU = requests.Since(l.counted).Each(n), map[string]float64{}
	for name, now := range usage {
		l.CPU[name] = measure.Milliseconds(now.CPU-l.at[name].CPU) / float64(n)
	}
	return nil
}

// quiet waits until Quarry's processes use less than a twentieth of a core for
// two seconds, or for a minute.
func (b *bench) quiet(ctx context.Context) error {
	const window, step = 2 * time.Second, 500 * time.Millisecond
	var seen []time.Duration
	for range 120 {
		usage, err := b.usage()
		if err != nil {
			return err
		}
		now := usage["controller"].CPU + usage["agent"].CPU
		seen = append(seen, now)
		if n := int(window / step); len(seen) > n && now-seen[len(seen)-1-n] < window/20 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(step):
		}
	}
	return nil
}

// startFloor starts the provisioner that does no work as a process of its own,
// and returns what ends it.
func (b *bench) startFloor(ctx context.Context) (stop func(), err error) {
	return b.child(ctx, floorClass, exec.Command(b.Self, "floor", b.cluster.Kubeconfig()))
}

// child starts a provisioner on the machine and returns when it has bound a
// claim of its class.
func (b *bench) child(ctx context.Context, class string, command *exec.Cmd) (stop func(), err error) {
	log, err := os.CreateTemp("", "quarry-bench-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = command.Process.Kill()
		_ = command.Wait() // killed
		_ = os.Remove(log.Name())
	}
	limited, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("see %s", log.Name()))
	defer cancel()
	names := b.names("warm", 1)
	if _, _, err = b.claims.Bind(limited, wish(class, claimSize, names)); err == nil {
		_, _, err = b.claims.Delete(limited, names)
	}
	if err != nil {
		_ = command.Process.Kill()
		_ = command.Wait()
		return nil, fmt.Errorf("%s: %w", command.Path, err)
	}
	return stop, nil
}

func (b *bench) reportBind(s *Section, lives map[string]*life) {
	head := []string{""}
	for _, kind := range kinds {
		head = append(head, kind.name)
	}
	t := s.table(head...)
	floor := lives[floorClass]
	row := func(name string, of func(l *life) string) {
		cells := []any{name}
		for _, kind := range kinds {
			cells = append(cells, of(lives[kind.class]))
		}
		t.Row(cells...)
	}
	ratio := func(have, base float64) string { return fmt.Sprintf("**%.2f**", have/max(base, 1e-9)) }
	times := func(name string, of func(l *life) measure.Times) {
		row(name+": median against the floor (ms; p99)", func(l *life) string {
			p50 := measure.Milliseconds(of(l).Quantile(0.5))
			return fmt.Sprintf("%s (%.0f; %.0f)", ratio(p50, measure.Milliseconds(of(floor).Quantile(0.5))), p50,
				measure.Milliseconds(of(l).Quantile(0.99)))
		})
	}
	rates := func(name string, of func(l *life) measure.Summary) {
		row(name+": rate against the floor (per second; p50, p99 ms)", func(l *life) string {
			have := of(l)
			return fmt.Sprintf("%s (%.1f; %.0f, %.0f)", ratio(have.Second, of(floor).Second), have.Second,
				have.P50, have.P99)
		})
	}
	times("one claim to Bound", func(l *life) measure.Times { return l.One })
	times("one claim deleted", func(l *life) measure.Times { return l.Gone1 })
	rates("100 at once", func(l *life) measure.Summary { return l.Hundred })
	rates(fmt.Sprintf("%d at once", burst), func(l *life) measure.Summary { return l.Many })
	row(fmt.Sprintf("%d deleted: wall time against the floor (s)", burst), func(l *life) string {
		return fmt.Sprintf("%s (%.1f)", ratio(l.Deleted.Wall, floor.Deleted.Wall), l.Deleted.Wall/1000)
	})
	for _, part := range parts {
		row(part.name+": CPU of a volume's life, ms", func(l *life) string {
			return fmt.Sprintf("%.1f", l.CPU[part.name])
		})
	}
	row("API server: CPU against the floor", func(l *life) string {
		return ratio(l.CPU["API server"], floor.CPU["API server"])
	})
	row("requests for a volume's life", func(l *life) string {
		return fmt.Sprintf("%.1f", l.Requests.Total(isRequest))
	})
	row("· writes to Quarry's own objects", func(l *life) string {
		return fmt.Sprintf("%.2f", l.Requests.Total(isOwnWrite))
	})
	row("· writes to capacity objects", func(l *life) string {
		return fmt.Sprintf("%.2f", l.Requests.Total(isCapacity))
	})

	b.reportRequests(s, lives)
	s.note("Medians of %d claims of %s one after the other, the kinds in turns; then one kind after the other at "+
		"once. The node is "+
		"chosen by annotation, as the scheduler does. The floor is a provisioner of the same library that "+
		"does no work.", len(floor.One), claimSize)
	for name, of := range map[string]func(l *life) float64{
		"one":  func(l *life) float64 { return measure.Milliseconds(l.One.Quantile(0.5)) },
		"many": func(l *life) float64 { return l.Many.Second },
	} {
		bars := measure.Bars{Title: "One claim to Bound", Unit: "ms, median"}
		if name == "many" {
			bars = measure.Bars{Title: fmt.Sprintf("%d claims at once", burst), Unit: "bound each second"}
		}
		for _, kind := range kinds {
			bars.Bars = append(bars.Bars, measure.Bar{Name: kind.name, Value: of(lives[kind.class])})
		}
		s.Plots[name] = bars
	}
	s.Details["lives"] = lives
}

// reportRequests is a table of the requests that come often.
func (b *bench) reportRequests(s *Section, lives map[string]*life) {
	head := []string{"requests of a volume's life"}
	var names []string
	for _, kind := range kinds {
		head = append(head, kind.name)
		for name, count := range lives[kind.class].Requests {
			if count >= 0.1 && isRequest(name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	t := s.table(head...)
	for _, name := range names {
		cells := []any{name}
		for _, kind := range kinds {
			cells = append(cells, fmt.Sprintf("%.2f", lives[kind.class].Requests[name]))
		}
		t.Row(cells...)
	}
}

// isRequest leaves out watches, and what Kubernetes does all the time.
func isRequest(name string) bool {
	verb, resource, _ := strings.Cut(name, " ")
	return verb != "WATCH" && resource != "leases" && resource != "" && !strings.HasPrefix(resource, "/")
}

func isOwnWrite(name string) bool {
	verb, resource, _ := strings.Cut(name, " ")
	resource, _, _ = strings.Cut(resource, "/")
	return verb != "GET" && verb != "LIST" && verb != "WATCH" && (resource == "volumes" || resource == "pools")
}

func isCapacity(name string) bool {
	verb, resource, _ := strings.Cut(name, " ")
	return verb != "GET" && verb != "LIST" && verb != "WATCH" && resource == "csistoragecapacities"
}

package measure

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/client-go/rest"
)

// Requests are numbers of requests that an API server has answered, by verb and
// resource ("PATCH volumes/status").
type Requests map[string]float64

// RequestsOf reads them from the API server's metrics. Requests that are still
// open, such as watches, are not in it.
func RequestsOf(ctx context.Context, client rest.Interface) (Requests, error) {
	text, err := client.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	return parseRequests(text)
}

var label = regexp.MustCompile(`(\w+)="([^"]*)"`)

func parseRequests(text []byte) (Requests, error) {
	requests := Requests{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "apiserver_request_total{") {
			continue
		}
		end := strings.LastIndexByte(line, ' ')
		count, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("read the API server's metrics: %w", err)
		}
		labels := map[string]string{}
		for _, match := range label.FindAllStringSubmatch(line[:end], -1) {
			labels[match[1]] = match[2]
		}
		name := labels["verb"] + " " + labels["resource"]
		if labels["subresource"] != "" {
			name += "/" + labels["subresource"]
		}
		requests[name] += count
	}
	return requests, lines.Err()
}

// Since returns what has come since before, without what did not change.
func (r Requests) Since(before Requests) Requests {
	since := Requests{}
	for name, count := range r {
		if count -= before[name]; count > 0 {
			since[name] = count
		}
	}
	return since
}

// Total is the sum of those whose name satisfies the filter (nil: all).
func (r Requests) Total(filter func(name string) bool) float64 {
	sum := 0.0
	for name, count := range r {
		if filter == nil || filter(name) {
			sum += count
		}
	}
	return sum
}

// Each divides all counts by a number of things.
func (r Requests) Each(things int) Requests {
	each := Requests{}
	for name, count := range r {
		each[name] = count / float64(max(things, 1))
	}
	return each
}

package measure

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestQuantile(t *testing.T) {
	var times Times
	for i := 100; i > 0; i-- {
		times = append(times, time.Duration(i))
	}
	assert.Equal(t, time.Duration(51), times.Quantile(0.5))
	assert.Equal(t, time.Duration(100), times.Quantile(0.99))
	assert.Equal(t, time.Duration(100), times.Quantile(1))
	assert.Zero(t, Times(nil).Quantile(0.5))
	assert.Equal(t, time.Duration(100), times[0], "what was given is left as it was")
}

func TestRequests(t *testing.T) {
	before, err := parseRequests([]byte(`# HELP apiserver_request_total x
apiserver_request_total{code="200",group="",resource="pods",scope="resource",subresource="status",verb="PATCH"} 3
apiserver_request_total{code="404",group="",resource="pods",scope="resource",subresource="status",verb="PATCH"} 1
apiserver_request_total{code="200",group="",resource="nodes",scope="resource",subresource="",verb="GET"} 1e+01
apiserver_request_sli_duration_seconds_count{resource="nodes",verb="GET"} 7
`))
	require.NoError(t, err)
	assert.Equal(t, Requests{"PATCH pods/status": 4, "GET nodes": 10}, before)

	after := Requests{"PATCH pods/status": 14, "GET nodes": 10, "POST pods": 2}
	since := after.Since(before)
	assert.Equal(t, Requests{"PATCH pods/status": 10, "POST pods": 2}, since)
	assert.Equal(t, 10.0, since.Total(func(name string) bool { return strings.HasPrefix(name, "PATCH") }))
	assert.Equal(t, 5.0, since.Each(2)["PATCH pods/status"])
}

func TestUsage(t *testing.T) {
	usage, err := UsageOf(os.Getpid())
	require.NoError(t, err)
	assert.Positive(t, usage.Resident)
	assert.GreaterOrEqual(t, usage.Peak, usage.Resident)
	_, err = UsageOf(-1)
	assert.Error(t, err)
}

func TestDrawingsAreXML(t *testing.T) {
	plot := Plot{Title: "a < b & c", X: "nodes", Y: "ms", LogY: true, Lines: []Line{
		{Name: "<one>", Points: []Point{{10, 1}, {100, 0}, {1000, 300}}}, {Name: "none"}}}
	bars := Bars{Title: "x", Unit: "us", Bars: []Bar{{"a & b", 1}, {"c", 0}}}
	for _, svg := range []string{plot.SVG(), bars.SVG(), Plot{}.SVG(), Bars{}.SVG(), Bars{Log: true}.SVG()} {
		decoder := xml.NewDecoder(strings.NewReader(svg))
		for {
			_, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err, svg)
		}
		assert.NotContains(t, svg, "NaN")
		assert.NotContains(t, svg, "Inf")
	}
}

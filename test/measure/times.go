package measure

import (
	"slices"
	"time"
)

// Times are how long each of many equal things took.
type Times []time.Duration

// Quantile returns the time that the given share of all is not longer than: 0.5
// is the median. No times give 0.
func (t Times) Quantile(share float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

// Milliseconds returns a duration as a number of milliseconds.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Summary is what is kept of Times, in milliseconds.
type Summary struct {
	Count  int     `json:"count"`
	P50    float64 `json:"p50Milliseconds"`
	P99    float64 `json:"p99Milliseconds"`
	Wall   float64 `json:"wallMilliseconds"` // from the first one's start to the last one's end
	Second float64 `json:"perSecond"`        // Count over Wall
}

// Summarize sums up times that lie within wall.
func Summarize(t Times, wall time.Duration) Summary {
	s := Summary{Count: len(t), P50: Milliseconds(t.Quantile(0.5)), P99: Milliseconds(t.Quantile(0.99)),
		Wall: Milliseconds(wall)}
	if wall > 0 {
		s.Second = float64(len(t)) / wall.Seconds()
	}
	return s
}

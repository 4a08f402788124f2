package config

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Reserve is what a pool keeps free: a share of its filesystem or a number of
// bytes.
type Reserve struct {
	text       string
	bytes      int64
	perMillion int64 // of the filesystem's size; 0: bytes counts
	byDefault  bool
}

// IsDefault tells a reserve that nobody gave.
func (r Reserve) IsDefault() bool { return r.byDefault }

// SharedReserve is what is kept free by default of a filesystem that is not the
// pool's alone.
func SharedReserve() Reserve { return must(ParseReserve(DefaultSharedReserve)) }

// ParseReserve reads a percentage from 0% to 90% with at most four decimals, or
// a Kubernetes quantity.
func ParseReserve(s string) (Reserve, error) {
	if number, ok := strings.CutSuffix(s, "%"); ok {
		n, err := decimal(number, 4)
		if err != nil || n > 90*10_000 {
			return Reserve{}, fmt.Errorf("%q is not a percentage from 0%% to 90%%", s)
		}
		return Reserve{text: s, perMillion: n}, nil
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return Reserve{}, fmt.Errorf("%q is neither a percentage (10%%) nor a quantity (20Gi)", s)
	}
	n, ok := q.AsInt64()
	if !ok || n < 0 {
		return Reserve{}, fmt.Errorf("%q is not a whole number of bytes, 0 or more", s)
	}
	return Reserve{text: s, bytes: n}, nil
}

// Of returns how many bytes of a filesystem of size bytes are kept free: never
// more than all, rounded up.
func (r Reserve) Of(size int64) int64 {
	if r.perMillion == 0 {
		return min(r.bytes, size)
	}
	return scale(size, r.perMillion, 999_999)
}

// String is the text it was read from.
func (r Reserve) String() string { return r.text }

// UnmarshalYAML reads a percentage or a quantity; a bare number counts bytes.
func (r *Reserve) UnmarshalYAML(n *yaml.Node) (err error) {
	*r, err = fromScalar(n, ParseReserve)
	return err
}

// Overcommit is how many times over space may be promised.
type Overcommit struct {
	text       string
	perMillion int64
}

// ParseOvercommit reads a decimal number from 1 to 100 with at most six
// decimals.
func ParseOvercommit(s string) (Overcommit, error) {
	n, err := decimal(s, 6)
	if err != nil || n < 1_000_000 || n > 100_000_000 {
		return Overcommit{}, fmt.Errorf("%q is not a number from 1.0 to 100", s)
	}
	return Overcommit{text: s, perMillion: n}, nil
}

// Of returns how many bytes may be promised where there are size bytes: rounded
// down, at most math.MaxInt64.
func (o Overcommit) Of(size int64) int64 { return scale(size, o.perMillion, 0) }

// String is the text it was read from.
func (o Overcommit) String() string { return o.text }

// UnmarshalYAML reads a number, quoted or not.
func (o *Overcommit) UnmarshalYAML(n *yaml.Node) (err error) {
	*o, err = fromScalar(n, ParseOvercommit)
	return err
}

func fromScalar[T any](n *yaml.Node, parse func(string) (T, error)) (v T, err error) {
	if n.Kind != yaml.ScalarNode {
		return v, fmt.Errorf("line %d: a number is expected", n.Line)
	}
	v, err = parse(n.Value)
	if err != nil {
		return v, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return v, nil
}

// decimal reads a non-negative decimal number exactly, in units of its last
// allowed decimal.
func decimal(s string, decimals int) (int64, error) {
	whole, fraction, dot := strings.Cut(s, ".")
	if len(fraction) > decimals || dot && fraction == "" {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(whole+fraction+strings.Repeat("0", decimals-len(fraction)), 10, 62)
	return int64(n), err
}

// scale returns (size*perMillion + add) / 1,000,000 without overflow in
// between, at most math.MaxInt64.
func scale(size, perMillion, add int64) int64 {
	hi, lo := bits.Mul64(uint64(max(size, 0)), uint64(perMillion))
	lo, carry := bits.Add64(lo, uint64(add), 0)
	hi += carry
	if hi >= 1_000_000 {
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, 1_000_000)
	return int64(min(q, math.MaxInt64))
}

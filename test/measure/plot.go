package measure

import (
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Point is one point of a line.
type Point struct{ X, Y float64 }

// Line is a line of a Plot.
type Line struct {
	Name   string
	Points []Point
}

// Plot is lines over a logarithmic axis, as an SVG that both light and dark
// pages can show.
type Plot struct {
	Title, X, Y string
	Lines       []Line
	LogY        bool
}

// Bar is one bar of Bars.
type Bar struct {
	Name  string
	Value float64
}

// Bars is a chart of horizontal bars, one for each thing that is compared.
type Bars struct {
	Title, Unit string
	Bars        []Bar
	Log         bool
}

const (
	plotWidth, plotHeight           = 640.0, 360.0
	plotLeft, plotRight             = 70.0, 190.0
	plotTop, plotBottom             = 40.0, 50.0
	barHeight, barLeft, barRight    = 24.0, 210.0, 110.0
	markRadius, lineWidth, fontSize = 3.5, 2.0, 12.0
)

// palette is told apart by people who see colours differently, too (Okabe and
// Ito).
var palette = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"}

// SVG draws the plot.
func (p Plot) SVG() string {
	var d drawing
	d.begin(plotWidth, plotHeight, p.Title)
	x := newScale(p.values(func(q Point) float64 { return q.X }), true, plotLeft, plotWidth-plotRight)
	y := newScale(p.values(func(q Point) float64 { return q.Y }), p.LogY, plotHeight-plotBottom, plotTop)
	for _, tick := range y.ticks() {
		at := y.at(tick)
		d.line(plotLeft, at, plotWidth-plotRight, at, "#8884", 1)
		d.text(plotLeft-8, at+4, "end", short(tick))
	}
	for _, tick := range p.xs() {
		d.text(x.at(tick), plotHeight-plotBottom+18, "middle", short(tick))
	}
	d.text((plotLeft+plotWidth-plotRight)/2, plotHeight-10, "middle", p.X)
	d.text(plotLeft-8, plotTop-10, "end", p.Y)
	for i, line := range p.Lines {
		colour := palette[i%len(palette)]
		for j, point := range line.Points {
			if j > 0 {
				before := line.Points[j-1]
				d.line(x.at(before.X), y.at(before.Y), x.at(point.X), y.at(point.Y), colour, lineWidth)
			}
			d.element("circle", "cx", num(x.at(point.X)), "cy", num(y.at(point.Y)), "r", num(markRadius),
				"fill", colour)
		}
		at := plotTop + float64(i)*18
		d.line(plotWidth-plotRight+14, at, plotWidth-plotRight+34, at, colour, lineWidth)
		d.text(plotWidth-plotRight+40, at+4, "start", line.Name)
	}
	return d.end()
}

func (p Plot) values(of func(Point) float64) []float64 {
	var all []float64
	for _, line := range p.Lines {
		for _, point := range line.Points {
			all = append(all, of(point))
		}
	}
	return all
}

// xs are the positions that were measured, each once.
func (p Plot) xs() []float64 {
	var all []float64
	seen := map[float64]bool{}
	for _, x := range p.values(func(q Point) float64 { return q.X }) {
		if !seen[x] {
			all = append(all, x)
		}
		seen[x] = true
	}
	return all
}

// SVG draws the bars.
func (b Bars) SVG() string {
	var d drawing
	height := plotTop + barHeight*float64(len(b.Bars)) + 10
	d.begin(plotWidth, height, b.Title+" ("+b.Unit+")")
	values := make([]float64, 0, len(b.Bars))
	for _, bar := range b.Bars {
		values = append(values, bar.Value)
	}
	x := newScale(values, b.Log, barLeft, plotWidth-barRight)
	for i, bar := range b.Bars {
		top := plotTop + barHeight*float64(i)
		d.text(barLeft-8, top+15, "end", bar.Name)
		width := max(x.at(bar.Value)-barLeft, 1)
		d.element("rect", "x", num(barLeft), "y", num(top+3), "width", num(width), "height", num(barHeight-6), "fill",
			palette[i%len(palette)])
		d.text(barLeft+width+6, top+15, "start", short(bar.Value))
	}
	return d.end()
}

// axis maps values to positions.
type axis struct {
	low, high float64 // of the values, logarithms where logarithmic
	from, to  float64 // positions
	log       bool
}

func newScale(values []float64, logarithmic bool, from, to float64) axis {
	a := axis{from: from, to: to, log: logarithmic}
	if !logarithmic {
		for _, v := range values {
			a.high = max(a.high, v)
		}
		a.high = max(a.high*1.05, 1e-9)
		return a
	}
	a.low, a.high = math.Inf(1), math.Inf(-1)
	for _, v := range values {
		v = math.Log10(max(v, 1e-3))
		a.low, a.high = min(a.low, v), max(a.high, v)
	}
	if len(values) == 0 {
		a.low, a.high = 0, 1
	}
	margin := max((a.high-a.low)*0.05, 0.05)
	a.low, a.high = a.low-margin, a.high+margin
	return a
}

func (a axis) at(v float64) float64 {
	if a.log {
		v = math.Log10(max(v, 1e-3))
	}
	return a.from + (v-a.low)/(a.high-a.low)*(a.to-a.from)
}

func (a axis) ticks() []float64 {
	var all []float64
	if a.log {
		for exponent := math.Ceil(a.low); exponent <= a.high; exponent++ {
			all = append(all, math.Pow(10, exponent))
		}
		if len(all) >= 2 {
			return all
		}
		return []float64{math.Pow(10, a.low), math.Pow(10, (a.low+a.high)/2), math.Pow(10, a.high)}
	}
	step := math.Pow(10, math.Floor(math.Log10(a.high)))
	for a.high/step < 3 {
		step /= 2
	}
	for v := 0.0; v <= a.high; v += step {
		all = append(all, v)
	}
	return all
}

// drawing is an SVG that is being written.
type drawing struct{ strings.Builder }

func (d *drawing) begin(width, height float64, title string) {
	fmt.Fprintf(d,
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" font-family="sans-serif" font-size="%s" fill="#777">`+"\n",
		num(width), num(height), num(fontSize))
	d.element("title", "", escape(title))
	d.element("text", "x", num(width/2), "y", "18", "text-anchor", "middle", "font-weight", "bold", "", escape(title))
}

func (d *drawing) end() string {
	d.WriteString("</svg>\n")
	return d.String()
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string, width float64) {
	d.element("line", "x1", num(x1), "y1", num(y1), "x2", num(x2), "y2", num(y2), "stroke", colour,
		"stroke-width", num(width))
}

func (d *drawing) text(x, y float64, anchor, text string) {
	d.element("text", "x", num(x), "y", num(y), "text-anchor", anchor, "", escape(text))
}

// element writes an element: names and values of attributes in turns; one
// without a name is the content.
func (d *drawing) element(name string, attributes ...string) {
	fmt.Fprintf(d, "<%s", name)
	content := ""
	for i := 0; i < len(attributes); i += 2 {
		if attributes[i] == "" {
			content = attributes[i+1]
			continue
		}
		fmt.Fprintf(d, ` %s="%s"`, attributes[i], attributes[i+1])
	}
	fmt.Fprintf(d, ">%s</%s>\n", content, name)
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}

func num(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// short writes a number for people: three digits that count.
func short(v float64) string {
	switch {
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

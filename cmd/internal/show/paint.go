package show

import (
	"io"
	"os"

	"golang.org/x/term"
)

// Colour is an ANSI colour, as SGR has it.
type Colour string

// The colours that have a meaning.
const (
	Red    Colour = "31" // it does not work
	Yellow Colour = "33" // somebody has to do something
	Green  Colour = "32" // all is well
	Faint  Colour = "2"  // need not be read
	Bold   Colour = "1"
)

// Paint colours text where that is wanted. The zero value does not.
type Paint struct{ on bool }

// PaintFor colours text that goes to a terminal, unless NO_COLOR is set
// (no-color.org), or the terminal has no colours.
func PaintFor(w io.Writer) Paint {
	file, is := w.(*os.File)
	return Paint{is && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" &&
		term.IsTerminal(int(file.Fd()))}
}

// In returns the text in a colour.
func (p Paint) In(c Colour, text string) string {
	if !p.on || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

package store

import (
	"context"
	"errors"
	"time"
)

// freeSlice is how long one entry of the trash is freed while another one of
// its filesystem waits.
const freeSlice = time.Second

// errSlice says that an entry's turn is over. What it has done stays done.
var errSlice = errors.New("another entry's turn")

// turn is a context whose Err also says when an entry's turn is over, to those
// who ask between two steps. Its Done does not: no step is broken off.
type turn struct {
	context.Context
	until  time.Time
	others func() bool
}

// Err returns errSlice once the time is over and somebody waits. The time
// begins with the first call, so that each turn takes at least a step.
func (t *turn) Err() error {
	if err := t.Context.Err(); err != nil {
		return err
	}

	now := time.Now()
	if t.until.IsZero() {
		t.until = now.Add(freeSlice)
	}

	if now.After(t.until) && t.others() {
		return errSlice
	}

	return nil
}

// unbroken is the context without the end of its turn: for steps that have to
// begin anew when they are broken off.
func unbroken(ctx context.Context) context.Context {
	if t, ok := ctx.(*turn); ok {
		return t.Context
	}
	return ctx
}

package store

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFeedSaysWhatChanged(t *testing.T) {
	s := New(Options{Log: slog.New(slog.DiscardHandler)})
	one := s.Feed()
	take := func(f *Feed, wantAll bool, want ...string) {
		t.Helper()
		ids, all := f.Take()
		require.Equal(t, wantAll, all)
		require.ElementsMatch(t, want, ids)
	}
	take(one, true)
	take(one, false)
	changed := s.Changed()
	s.notifyOf("b")
	<-changed
	two := s.Feed()
	s.notifyOf("a", "b")
	take(one, false, "a", "b")
	take(two, true, "a", "b")
	changed = s.Changed()
	s.notifyOf() // room
	<-changed
	take(one, false)
	s.notify()
	s.notifyOf("c")
	take(one, true, "c")
	take(two, true, "c")
	take(one, false)
}

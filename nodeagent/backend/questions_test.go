package backend

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestQuestionWithoutAnswer: of a filesystem that hangs one thing is asked, and
// nobody waits for it longer than that; once it answers it is told.
func TestQuestionWithoutAnswer(t *testing.T) {
	late := make(chan string, 1)
	q := &Questions{Within: 20 * time.Millisecond, Late: func(id string) { late <- id }}
	hangs, ended := make(chan struct{}), make(chan struct{})
	err := q.ask(t.Context(), "pvc-1", func() error { <-hangs; return nil },
		func() { close(ended) })
	require.ErrorIs(t, err, ErrNoAnswer)

	require.ErrorIs(t, q.Hold("pvc-1", func() error { panic("a second thread is held") }),
		ErrNoAnswer)
	require.NoError(t, q.Hold("pvc-2", func() error { return nil }),
		"another is asked all the same")

	close(hangs)
	require.Equal(t, "pvc-1", <-late)
	<-ended
	failed := errors.New("it answers with an error")
	require.ErrorIs(t, q.Hold("pvc-1", func() error { return failed }), failed)
}

// TestQuestionsTakeTurns: who asks while another is answered gets an answer of
// its own.
func TestQuestionsTakeTurns(t *testing.T) {
	q := &Questions{Within: time.Minute}
	begun, answer := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- q.Hold("pvc-1", func() error { close(begun); <-answer; return nil })
	}()
	<-begun
	second := make(chan error, 1)
	go func() { second <- q.Hold("pvc-1", func() error { return unix.EIO }) }()
	close(answer)
	require.NoError(t, <-first)
	require.ErrorIs(t, <-second, unix.EIO)
}

// TestDiagnose puts answers into words.
func TestDiagnose(t *testing.T) {
	rec := &record.Volume{ID: "pvc-1"}
	require.Nil(t, Diagnose(rec, nil))
	for err, want := range map[error]string{
		ErrNoAnswer: v1alpha1.ReasonNotResponding,
		unix.EROFS:  v1alpha1.ReasonReadOnly,
		unix.EIO:    v1alpha1.ReasonShutDown,
	} {
		sick := Diagnose(rec, err)
		require.Equal(t, want, sick.Reason)
		require.Equal(t, want != v1alpha1.ReasonNotResponding, sick.canBeMended())
	}
}

// TestAnswersAt asks a filesystem that is well.
func TestAnswersAt(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, AnswersAt(dir))
	require.ErrorIs(t, AnswersAt(dir+"/none"), unix.ENOENT)
}

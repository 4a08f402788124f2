package provisioner

import (
	"fmt"
	"hash/fnv"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
)

// eventRecorder makes sure that people read the newest note. The recorder below
// takes two events of the same type, reason, action and object for one,
// whatever their notes are, and goes on showing the first note; so the action
// differs with the note here. And the API server refuses an event whose note is
// too long, so that it would be lost; notes are cut here.
type eventRecorder struct{ events.EventRecorder }

// longestNote is in bytes (events.k8s.io/v1, Event.note).
const longestNote = 1024

func (r eventRecorder) Eventf(
	regarding, related runtime.Object,
	kind, reason, action, note string,
	args ...any,
) {
	text := shortened(fmt.Sprintf(note, args...))
	h := fnv.New32a()
	h.Write([]byte(text)) // never fails
	r.EventRecorder.Eventf(
		regarding,
		related,
		kind,
		reason,
		fmt.Sprintf("%s-%08x", action, h.Sum32()),
		"%s",
		text,
	)
}

// shortened cuts a note that is too long, between two characters.
func shortened(note string) string {
	const more = "…"
	if len(note) <= longestNote {
		return note
	}

	end := longestNote - len(more)
	for !utf8.RuneStart(note[end]) {
		end--
	}

	return note[:end] + more
}

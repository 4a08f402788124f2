package diagnose

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// EventTime is when an event was seen last. Who emits it by events.k8s.io fills
// in other fields than who does by the old API.
func EventTime(e *corev1.Event) time.Time {
	at := e.CreationTimestamp.Time
	times := []time.Time{e.FirstTimestamp.Time, e.LastTimestamp.Time, e.EventTime.Time}
	if e.Series != nil {
		times = append(times, e.Series.LastObservedTime.Time)
	}

	for _, t := range times {
		if t.After(at) {
			at = t
		}
	}

	return at
}

// eventIndex finds the events about an object.
type eventIndex map[types.UID][]*corev1.Event

func indexEvents(events []corev1.Event) eventIndex {
	index := eventIndex{}
	for i := range events {
		uid := events[i].InvolvedObject.UID
		index[uid] = append(index[uid], &events[i])
	}
	return index
}

// newest is the event about an object that was seen last among those that want
// accepts; nil if there is none.
func (x eventIndex) newest(uid types.UID, want func(*corev1.Event) bool) *corev1.Event {
	var found *corev1.Event
	for _, e := range x[uid] {
		if want(e) && (found == nil || EventTime(e).After(EventTime(found))) {
			found = e
		}
	}
	return found
}

func isWarning(e *corev1.Event) bool { return e.Type == corev1.EventTypeWarning }

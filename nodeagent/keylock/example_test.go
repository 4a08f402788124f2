package keylock_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/keylock"
)

// Operations on one volume exclude each other, and those on different volumes
// do not.
func ExampleSet() {
	var locks keylock.Set

	unlock, err := locks.Lock(context.Background(), "pvc-1")
	if err != nil {
		panic(err)
	}

	_, err = locks.TryLock("pvc-1")
	fmt.Println(err)

	other, err := locks.TryLock("pvc-2")
	fmt.Println("pvc-2:", err)
	other()

	// The wait ends with the context, and the error says both.
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err = locks.Lock(ctx, "pvc-1")
	_, busy := errors.AsType[*keylock.BusyError](err)
	fmt.Println(busy, errors.Is(err, context.DeadlineExceeded))

	unlock()
	unlock, err = locks.TryLock("pvc-1")
	fmt.Println("pvc-1:", err)
	unlock()
	// Output:
	// an operation on pvc-1 is under way
	// pvc-2: <nil>
	// true true
	// pvc-1: <nil>
}

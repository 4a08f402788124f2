package record_test

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A record can be read by people. One that somebody changed is reported, and
// nothing is done by it.
func ExampleDecodeVolume() {
	content, err := record.EncodeVolume(&record.Volume{
		ID:        "pvc-1",
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Backend:   record.BackendLoop,
		SizeBytes: 1 << 30,
		FSType:    "ext4",
	})
	if err != nil {
		panic(err)
	}

	v, err := record.DecodeVolume(content)
	fmt.Println(v.ID, v.SizeBytes, err)

	larger := bytes.Replace(content, []byte("1073741824"), []byte("9073741824"), 1)
	_, err = record.DecodeVolume(larger)
	_, unreadable := errors.AsType[*record.UnreadableError](err)
	fmt.Println(unreadable, err)
	// Output:
	// pvc-1 1073741824 <nil>
	// true unreadable record: the checksum does not match
}

// An id is checked before it comes near a path.
func ExampleCheckID() {
	for _, id := range []string{"pvc-1", "../etc", "PVC-1", ".quarry"} {
		fmt.Println(record.CheckID(id) == nil, id)
	}
	// Output:
	// true pvc-1
	// false ../etc
	// false PVC-1
	// false .quarry
}

// A volume that is growing is promised what it grows to, also after a crash.
func ExampleVolume_Promise() {
	v := record.Volume{SizeBytes: 1 << 30}
	fmt.Println(v.Promise())
	v.GrowingTo = 2 << 30
	fmt.Println(v.Promise())
	// Output:
	// 1073741824
	// 2147483648
}

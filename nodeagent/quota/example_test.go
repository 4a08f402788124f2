package quota_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/quarry-storage/quarry/nodeagent/quota"
)

// A tree is walked a piece at a time, so that nothing waits for all of a large
// one. The cursor knows where to go on.
func ExampleCursor() {
	tree, err := os.MkdirTemp("", "tree")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(tree)

	for _, name := range []string{"a", "b", "c"} {
		if err := os.Mkdir(filepath.Join(tree, name), 0o700); err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name, "file"), nil, 0o600); err != nil {
			panic(err)
		}
	}

	top, err := os.Open(tree)
	if err != nil {
		panic(err)
	}
	defer top.Close()

	var files uint64
	at, calls := new(quota.Cursor), 0
	for !at.Done() {
		report, err := quota.Measure(context.Background(), top, at, 2)
		if err != nil {
			panic(err)
		}
		files += report.Inodes
		calls++
	}

	fmt.Println(files, "directories and files, in more than one call:", calls > 1)
	// Output:
	// 7 directories and files, in more than one call: true
}

package beneath_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
)

// What a tenant puts into a volume does not lead out of it, also where a link
// took the place of a directory.
func ExampleDir_OpenFile() {
	pool, err := os.MkdirTemp("", "pool")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(pool)

	dir, err := beneath.Open(pool) // an administrator's path, which may have links
	if err != nil {
		panic(err)
	}
	defer dir.Close()

	volume, err := dir.EnsureDir("pvc-1", 0o700)
	if err != nil {
		panic(err)
	}
	defer volume.Close()

	if err := os.Symlink("/etc", filepath.Join(pool, "pvc-1", "data")); err != nil {
		panic(err)
	}

	_, err = volume.OpenFile("data/passwd", unix.O_RDONLY, 0)
	fmt.Println("a link:", errors.Is(err, unix.ELOOP))
	_, err = volume.OpenFile("../../etc/passwd", unix.O_RDONLY, 0)
	fmt.Println("a way up:", errors.Is(err, unix.EXDEV))
	// Output:
	// a link: true
	// a way up: true
}

// A file is there whole or as it was before, at whatever moment the machine
// stops.
func ExampleDir_WriteFile() {
	pool, err := os.MkdirTemp("", "pool")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(pool)

	dir, err := beneath.Open(pool)
	if err != nil {
		panic(err)
	}
	defer dir.Close()

	if err := dir.WriteFile("volume.json", []byte("{}"), 0o600); err != nil {
		panic(err)
	}

	content, err := dir.ReadFile("volume.json", 1<<20)
	fmt.Printf("%s %v\n", content, err)
	fmt.Println(dir.WriteFile("a/b", nil, 0o600))
	// Output:
	// {} <nil>
	// "a/b" is not the name of a file
}

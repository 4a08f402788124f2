package loop

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Seen is what one look tells of a loop device without opening it.
type Seen struct {
	Number  int
	Backing Backing
	// Path leads to the image, as the kernel knows it now. An image that was
	// deleted, or replaced by another file of its name, shows as "...
	// (deleted)".
	Path string
	// Autoclear: it will detach itself when its last user closes it.
	Autoclear bool
}

// Look returns what is beneath the machine's loop devices, by image. It costs a
// few reads of sysfs for each device, and opens only those that it has not seen
// before. None of that waits for a disk.
func Look() (map[Backing][]Seen, error) {
	scanned, err := theScans.scan()
	if err != nil {
		return nil, fmt.Errorf("look at the loop devices: %w", err)
	}
	table := make(map[Backing][]Seen, len(scanned))
	for _, is := range scanned {
		seen := Seen{Number: is.number, Backing: is.backing}
		path, err := readNow(is.number, backingFile)
		var mark string
		if err == nil {
			mark, err = readNow(is.number, autoclear)
		}
		if vanished(err) {
			continue // detached since
		}
		if err != nil {
			return nil, fmt.Errorf("look at loop%d: %w", is.number, err)
		}
		seen.Path, seen.Autoclear = path, mark == "1"
		table[is.backing] = append(table[is.backing], seen)
	}
	return table, nil
}

// readNow reads a file of a device, through what is open of it where it is kept
// open.
func readNow(number int, name string) (string, error) {
	if p := pinned(number); p != nil {
		if text, err := p.read(name); err == nil {
			return text, nil
		}
	}
	return readText(sysfs(number, name))
}

// NumberOf returns the number of the loop device that a path of /dev names.
func NumberOf(path string) (int, bool) {
	digits, ok := strings.CutPrefix(path, "/dev/loop")
	number, err := strconv.Atoi(digits)
	return number, ok && err == nil && number >= 0
}

// readText reads a file of sysfs, which is a page at most, in three system
// calls where os.ReadFile takes nine: there are such files for each device of
// the machine in a look.
func readText(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var content [4096]byte
	n, err := unix.Read(fd, content[:])
	if err != nil {
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	return strings.TrimSuffix(string(content[:n]), "\n"), nil
}

// Package wire is what the host and the guest's init say to each other over
// the one virtio-serial port of a test machine.
//
// Everything is a frame: one byte of kind, the payload's length as a 32-bit
// big-endian number, the payload. One ordered stream for both output and exit
// status means that the exit status cannot overtake the output before it.
package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Port is the name of the virtio-serial port.
const Port = "org.quarry.machine"

// HostTag is the 9p mount tag of the host's root; ShareTag(i) those of the
// writable directories.
const HostTag = "host"

// ShareTag is the 9p mount tag of the i-th writable directory.
func ShareTag(i int) string { return fmt.Sprintf("share%d", i) }

// DiskSerial is the serial number by which the guest knows the i-th disk,
// whatever order the kernel found them in.
func DiskSerial(i int) string { return fmt.Sprintf("machine-disk%d", i) }

// Kind says what a frame's payload is.
type Kind byte

// The kinds of frame. Spec goes to the guest, all others to the host.
const (
	KindSpec    Kind = 'S' // a Spec as JSON, once, first
	KindStarted Kind = 'R' // empty: the command has been started
	KindStdout  Kind = 'O' // bytes of the command's standard output
	KindStderr  Kind = 'E' // bytes of the command's standard error
	KindExit    Kind = 'X' // an Exit as JSON, once, last
)

// Spec is what the guest is to do.
type Spec struct {
	Argv       []string // the command; Argv[0] is looked up in Env's PATH
	Env        []string // its environment
	Dir        string   // its working directory
	KernelName string   // for QUARRY_MACHINE_KERNEL
	ModuleTree string   // the host's directory that holds lib/modules/RELEASE
	Modules    []string // modules to load before the command starts
	Disks      int      // how many disks to wait for
	Scratch    int      // which of them is mounted as TMPDIR; -1 for none (tmpfs)
	Shares     []string // host directories mounted writable at their own path
}

// Exit is how the command ended.
type Exit struct {
	Code  int    // its exit status, 128+N when signal N ended it
	Error string // not empty: the guest could not run it
}

// maxPayload bounds what a broken peer can make us allocate, in bytes.
const maxPayload = 16 << 20

// Write sends one frame with a single call of w.Write.
func Write(w io.Writer, k Kind, payload []byte) error {
	buf := make([]byte, 5, 5+len(payload))
	buf[0] = byte(k)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(payload)))
	_, err := w.Write(append(buf, payload...))
	return err
}

// Read receives one frame. It returns io.EOF between frames and
// io.ErrUnexpectedEOF within one.
func Read(r io.Reader) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxPayload {
		return 0, nil, fmt.Errorf("frame %q of %d bytes is larger than %d", head[0], n, maxPayload)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Kind(head[0]), payload, nil
}

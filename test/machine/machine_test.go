package machine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quarry-storage/quarry/test/machine/wire"
)

func TestConfigIsChecked(t *testing.T) {
	for want, cfg := range map[string]Config{
		"no command":             {},
		"sector size 513":        {Command: []string{"x"}, Disks: []Disk{{Path: "a", SectorSize: 513}}},
		"multiple of 4096":       {Command: []string{"x"}, Disks: []Disk{{Path: "a", Size: 5000}}},
		"need a volatile disk":   {Command: []string{"x"}, Cut: Cut{Writes: 3}},
		"is not a directory":     {Command: []string{"x"}, Shares: []string{"/etc/passwd"}},
		"path \"\", size 0: a p": {Command: []string{"x"}, Disks: []Disk{{}}},
	} {
		if err := cfg.complete(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64", "linux-image-6.1.0-100-amd64",
		"linux-image-6.12.9+deb12-amd64"}
	got := slices.Clone(sorted)
	slices.Reverse(got)
	slices.SortFunc(got, compareVersions)
	if !slices.Equal(got, sorted) {
		t.Errorf("got %v", got)
	}
}

func TestLoadOrder(t *testing.T) {
	k := kernel{release: "6.9", dir: t.TempDir()}
	tree := filepath.Join(k.dir, "lib/modules/6.9")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\n",
		"modules.dep": "fs/9p/9p.ko.xz: net/9p/9pnet.ko.xz fs/netfs/netfs.ko.xz\nnet/9p/9pnet.ko.xz: " +
			"fs/netfs/netfs.ko.xz\nfs/netfs/netfs.ko.xz:\nfs/a/dm-mod.ko.xz:\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := loadOrder(k, []string{"virtio_pci", "9p", "dm_mod"})
	want := []string{"fs/netfs/netfs.ko.xz", "net/9p/9pnet.ko.xz", "fs/9p/9p.ko.xz", "fs/a/dm-mod.ko.xz"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := loadOrder(k, []string{"zfs"}); err == nil {
		t.Error("a module that does not exist is no error")
	}
}

func TestLineWatcher(t *testing.T) {
	for _, c := range []struct {
		pieces []string
		found  int // after how many pieces
	}{
		{[]string{"a ready"}, 1},
		{[]string{"re", "ad", "y\n"}, 3},
		{[]string{"rea\n", "dy\nready"}, 2},
		{[]string{"rea\ndy\n"}, 0},
	} {
		at, n := 0, 0
		w := lineWatcher{pattern: "ready", found: func() { at = n }}
		for _, p := range c.pieces {
			n++
			w.see([]byte(p))
		}
		if at != c.found {
			t.Errorf("%q: found at piece %d, want %d", c.pieces, at, c.found)
		}
	}
}

func TestConsoleKeepsTheLastLines(t *testing.T) {
	var c console
	for i := range 100 {
		fmt.Fprintf(&c, "line %d\r\n", i)
	}
	fmt.Fprint(&c, "Kernel pan")
	lines := c.last()
	if len(lines) != consoleLines+1 || lines[0] != "line 60" || lines[consoleLines] != "Kernel pan" {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}

func TestWire(t *testing.T) {
	var b bytes.Buffer
	for _, s := range []string{"", "payload"} {
		if err := wire.Write(&b, wire.KindStdout, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("X\x00\x00\x00\x09torn")
	for _, want := range []string{"", "payload"} {
		if kind, got, err := wire.Read(&b); kind != wire.KindStdout || string(got) != want || err != nil {
			t.Errorf("%q %q %v, want %q", kind, got, err, want)
		}
	}
	if _, _, err := wire.Read(&b); err != io.ErrUnexpectedEOF {
		t.Errorf("torn frame: %v", err)
	}
}

// block is one 4096-byte block full of c.
func block(c byte) []byte { return bytes.Repeat([]byte{c}, 4096) }

// testDisk is a volatile disk of 16 blocks and its image.
func testDisk(t *testing.T, seed uint64) (*volatileDisk, string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	size, err := Disk{Path: image, Size: 16 * 4096}.prepare()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	d, err := newVolatileDisk(image, size, conn, seed, seed != 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	return d, image
}

func writeBlock(t *testing.T, d *volatileDisk, at int64, c byte) {
	t.Helper()
	if _, err := d.WriteAt(block(c), at*4096); err != nil {
		t.Fatal(err)
	}
}

func TestCutLosesWhatWasNotFlushed(t *testing.T) {
	d, image := testDisk(t, 0)
	writeBlock(t, d, 0, 'a')
	writeBlock(t, d, 1, 'a')
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	writeBlock(t, d, 1, 'b')
	writeBlock(t, d, 2, 'b')
	got := make([]byte, 3*4096)
	if _, err := d.ReadAt(got, 0); err != nil ||
		string(got) != string(block('a'))+string(block('b'))+string(block('b')) {
		t.Fatalf("the guest does not read what it wrote: %v", err)
	}
	d.cut()
	if err := d.Flush(); !errors.Is(err, errPowerOff) {
		t.Errorf("flush after the cut: %v", err)
	}
	medium, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if want := string(block('a')) + string(block('a')) + string(make([]byte, 14*4096)); string(medium) != want {
		t.Error("the image is not what was flushed")
	}
}

// TestCutBySeed: the same seed leaves the same image, and some but not all of
// the sectors.
func TestCutBySeed(t *testing.T) {
	after := func(seed uint64) []byte {
		d, image := testDisk(t, seed)
		for i := range int64(16) {
			writeBlock(t, d, i, 'b')
		}
		d.cut()
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := after(1)
	if !bytes.Equal(one, after(1)) {
		t.Error("the same seed left two different images")
	}
	if bytes.Equal(one, after(2)) {
		t.Error("different seeds left the same image")
	}
	if n := bytes.Count(one, []byte{'b'}); n == 0 || n == len(one) || n%sectorSize != 0 {
		t.Errorf("%d of %d bytes survived", n, len(one))
	}
}

func TestCutAtTheNthWrite(t *testing.T) {
	d, image := testDisk(t, 0)
	d.arm(newCountdown(3, d.cut))
	for i := range int64(2) {
		writeBlock(t, d, i, 'a')
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(block('a'), 2*4096); !errors.Is(err, errPowerOff) {
		t.Errorf("third write: %v", err)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte{'a'}); n != 2*4096 {
		t.Errorf("%d bytes survived", n)
	}
}

func TestDiscardKeepsTheOrder(t *testing.T) {
	d, _ := testDisk(t, 0)
	writeBlock(t, d, 0, 'a')
	if err := d.Discard(0, 4096); err != nil {
		t.Fatal(err)
	}
	writeBlock(t, d, 1, 'b')
	got := make([]byte, 2*4096)
	if _, err := d.ReadAt(got, 0); err != nil || string(got) != string(make([]byte, 4096))+string(block('b')) {
		t.Errorf("discarded block reads wrong: %v", err)
	}
}

// TestNBD speaks the client's side by hand, as far as QEMU itself (TestCut)
// does not: refused options, out of range, FUA.
func TestNBD(t *testing.T) {
	d, image := testDisk(t, 0)
	client, server := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serveNBD(server, d.size, d) }()
	send := func(fields ...any) {
		t.Helper()
		var b []byte
		for _, f := range fields {
			var err error
			if b, err = binary.Append(b, binary.BigEndian, f); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := client.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(n int) []byte {
		t.Helper()
		b := make([]byte, n)
		if _, err := io.ReadFull(client, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	receive(18)
	send(uint32(3))
	send(uint64(nbdOptMagic), uint32(8), uint32(0)) // structured replies
	if r := receive(20); binary.BigEndian.Uint32(r[12:]) != nbdRepUnsup {
		t.Errorf("structured replies: %x", r)
	}
	send(uint64(nbdOptMagic), uint32(nbdOptGo), uint32(6), [6]byte{})
	if r := receive(20 + 12 + 20); binary.BigEndian.Uint64(r[22:]) != uint64(d.size) {
		t.Errorf("info: %x", r)
	}
	request := func(flags, kind uint16, off uint64, length uint32, data []byte) uint32 {
		t.Helper()
		send(uint32(nbdRequestMagic), flags, kind, uint64(77), off, length, data)
		r := receive(16)
		if binary.BigEndian.Uint64(r[8:]) != 77 {
			t.Errorf("handle in %x", r)
		}
		return binary.BigEndian.Uint32(r[4:])
	}
	if e := request(nbdCmdFlagFUA, nbdCmdWrite, 4096, 4096, block('f')); e != 0 {
		t.Errorf("write: %d", e)
	}
	if b, _ := os.ReadFile(image); !bytes.Equal(b[4096:8192], block('f')) {
		t.Error("a write with FUA is not on the medium")
	}
	if e := request(0, nbdCmdRead, 4096, 4096, nil); e != 0 || !bytes.Equal(receive(4096), block('f')) {
		t.Errorf("read: %d", e)
	}
	if e := request(0, nbdCmdWriteZeroes, 4096, 4096, nil); e != 0 {
		t.Errorf("write zeroes: %d", e)
	}
	if b, _ := os.ReadFile(image); !bytes.Equal(b[4096:8192], block('f')) {
		t.Error("unflushed zeroes are on the medium")
	}
	if e := request(0, nbdCmdWrite, 16*4096, 512, make([]byte, 512)); e != 28 {
		t.Errorf("write beyond the end: %d, want ENOSPC", e)
	}
	if e := request(0, nbdCmdRead, 1<<63, 512, nil); e != 22 {
		t.Errorf("read at an absurd offset: %d, want EINVAL", e)
	}
	if e := request(0, nbdCmdFlush, 0, 0, nil); e != 0 {
		t.Errorf("flush: %d", e)
	}
	if b, _ := os.ReadFile(image); !bytes.Equal(b[4096:8192], make([]byte, 4096)) {
		t.Error("flushed zeroes are not on the medium")
	}
	send(uint32(nbdRequestMagic), uint16(0), uint16(nbdCmdDisc), uint64(0), uint64(0), uint32(0))
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

package machine

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// sectorSize is what a disk writes whole or not at all, in bytes.
	sectorSize = 512
	// cacheLimit is how many unflushed bytes a disk holds back. Beyond it the
	// disk writes everything out of its own accord, which any disk may do.
	cacheLimit = 128 << 20
)

// errPowerOff answers every request after the cut.
var errPowerOff = errors.New("machine: disk has no power")

// volatileDisk is an image behind a write cache that a cut loses. The image
// file stands for the medium: what is in it, is safe.
type volatileDisk struct {
	size int64
	conn *os.File

	mu     sync.Mutex // all below
	image  *os.File   // nil after close
	off    bool       // the power was cut
	err    error      // the first failure of the image itself
	latest map[int64][]byte
	writes []cachedWrite // what is in latest, in the order it came
	cached int           // bytes in writes
	random *rand.Rand    // nil: a cut loses all writes
	count  *countdown    // nil: not armed
}

// cachedWrite is a write that was not flushed yet.
type cachedWrite struct {
	off  int64
	data []byte
}

func newVolatileDisk(path string, size int64, conn *os.File, seed uint64, keepSome bool) (*volatileDisk, error) {
	image, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("machine: disk: %w", err)
	}
	d := &volatileDisk{size: size, conn: conn, image: image, latest: map[int64][]byte{}}
	if keepSome {
		d.random = rand.New(rand.NewPCG(seed, 0))
	}
	return d, nil
}

// serve answers QEMU until the connection ends.
func (d *volatileDisk) serve() {
	if err := serveNBD(d.conn, d.size, d); err != nil && !errors.Is(err, errPowerOff) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.err == nil && !d.off {
			d.err = fmt.Errorf("machine: disk %s: %w", d.image.Name(), err)
		}
	}
}

// ReadAt reads what was last written, flushed or not.
func (d *volatileDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return 0, errPowerOff
	}
	if n, err := d.image.ReadAt(p, off); err != nil && !(err == io.EOF && n == len(p)) {
		return n, err
	}
	for o := off; o < off+int64(len(p)); o += sectorSize {
		if s, ok := d.latest[o]; ok {
			copy(p[o-off:], s)
		}
	}
	return len(p), nil
}

// WriteAt puts whole sectors into the cache. It keeps p.
func (d *volatileDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	count := d.count
	d.mu.Unlock()
	if count != nil {
		// Before the write: the Nth write is the one in flight at the cut.
		count.tick()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return 0, errPowerOff
	}
	if off%sectorSize != 0 || len(p)%sectorSize != 0 {
		return 0, fmt.Errorf("write of %d bytes at %d is not in whole sectors", len(p), off)
	}
	d.writes = append(d.writes, cachedWrite{off, p})
	for i := 0; i < len(p); i += sectorSize {
		d.latest[off+int64(i)] = p[i : i+sectorSize]
	}
	if d.cached += len(p); d.cached > cacheLimit {
		return len(p), d.flushLocked()
	}
	return len(p), nil
}

// Flush makes everything written before it safe.
func (d *volatileDisk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errPowerOff
	}
	return d.flushLocked()
}

func (d *volatileDisk) flushLocked() error {
	for _, w := range d.writes {
		if _, err := d.image.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	d.forget()
	return nil
}

func (d *volatileDisk) forget() {
	clear(d.latest)
	d.writes, d.cached = nil, 0
}

// Discard makes the range read as zeros and frees its space in the image. It
// is not held back: the cache is written out first to keep the order.
func (d *volatileDisk) Discard(off, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errPowerOff
	}
	if err := d.flushLocked(); err != nil {
		return err
	}
	return unix.Fallocate(int(d.image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// arm counts writes from now on.
func (d *volatileDisk) arm(c *countdown) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count = c
}

// cut takes the power away: of the cached writes none survives or, with a
// seed, some of their sectors do.
func (d *volatileDisk) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off || d.image == nil {
		return
	}
	d.off = true
	if d.random != nil {
		for _, w := range d.writes {
			for i := 0; i < len(w.data); i += sectorSize {
				if d.random.Uint64()&1 == 0 {
					continue
				}
				if _, err := d.image.WriteAt(w.data[i:i+sectorSize], w.off+int64(i)); err != nil && d.err == nil {
					d.err = err
				}
			}
		}
	}
	d.forget()
}

// close ends serving. Without a cut the cache is written out: the disk was
// running on when QEMU ended. It returns the first failure of the image.
func (d *volatileDisk) close() error {
	d.conn.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.image == nil {
		return d.err
	}
	if !d.off {
		if err := d.flushLocked(); err != nil && d.err == nil {
			d.err = err
		}
	}
	d.off = true
	if err := d.image.Close(); err != nil && d.err == nil {
		d.err = err
	}
	d.image = nil
	return d.err
}

// countdown calls zero when tick has been called n times.
type countdown struct {
	left atomic.Int64
	zero func()
}

func newCountdown(n int, zero func()) *countdown {
	c := &countdown{zero: zero}
	c.left.Store(int64(n))
	return c
}

func (c *countdown) tick() {
	if c.left.Add(-1) == 0 {
		c.zero()
	}
}

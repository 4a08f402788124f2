package machine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// nbdBackend is the disk behind the connection. Offsets and lengths are
// bytes, within the size and checked before the call.
type nbdBackend interface {
	io.ReaderAt
	io.WriterAt // may keep the slice
	Flush() error
	Discard(off, length int64) error // the range reads as zeros afterwards
}

// The parts of the protocol that QEMU's client needs; names and values are
// those of the NBD project's doc/proto.md.
const (
	nbdMagic        = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOptMagic     = 0x49484156454f5054 // "IHAVEOPT"
	nbdReplyMagic   = 0x0003e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698

	nbdFlagFixedNewstyle = 1 << 0
	nbdFlagNoZeroes      = 1 << 1

	nbdOptAbort = 2
	nbdOptInfo  = 6
	nbdOptGo    = 7

	nbdRepAck     = 1
	nbdRepInfo    = 3
	nbdRepUnsup   = 1<<31 | 1
	nbdInfoExport = 0

	nbdTransmissionFlags = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 // has flags, flush, FUA, trim, write zeroes

	nbdCmdRead, nbdCmdWrite, nbdCmdDisc, nbdCmdFlush, nbdCmdTrim, nbdCmdWriteZeroes = 0, 1, 2, 3, 4, 6

	nbdCmdFlagFUA = 1 << 0

	// nbdMaxRequest bounds one read or write, in bytes: the protocol's default.
	nbdMaxRequest = 32 << 20
	// nbdSmallZeroes is up to where zeroes are an ordinary, cached write.
	nbdSmallZeroes = 1 << 20
)

// serveNBD speaks the server's side of the NBD protocol on conn: fixed
// newstyle handshake, simple replies, one request after the other. It returns
// nil when the client disconnects.
func serveNBD(conn io.ReadWriter, size int64, disk nbdBackend) error {
	in := bufio.NewReaderSize(conn, 256<<10)
	if err := nbdHandshake(in, conn, size); err != nil {
		return fmt.Errorf("nbd handshake: %w", err)
	}
	for {
		var req struct {
			Magic  uint32
			Flags  uint16
			Type   uint16
			Handle uint64
			Offset uint64
			Length uint32
		}
		if err := binary.Read(in, binary.BigEndian, &req); err != nil {
			return disconnected(err)
		}
		if req.Magic != nbdRequestMagic {
			return fmt.Errorf("nbd request with magic %#x", req.Magic)
		}
		off, length := int64(req.Offset), int64(req.Length)
		inside := off >= 0 && off <= size && length <= size-off
		var data []byte
		if req.Type == nbdCmdRead || req.Type == nbdCmdWrite {
			if length > nbdMaxRequest {
				return fmt.Errorf("nbd request of %d bytes", length)
			}
			data = make([]byte, length)
		}
		var err error
		switch {
		case req.Type == nbdCmdDisc:
			return nil
		case req.Type == nbdCmdWrite:
			if _, err := io.ReadFull(in, data); err != nil {
				return disconnected(err)
			}
			if err = syscall.ENOSPC; inside {
				_, err = disk.WriteAt(data, off)
			}
		case !inside:
			err = syscall.EINVAL
		case req.Type == nbdCmdRead:
			_, err = disk.ReadAt(data, off)
		case req.Type == nbdCmdFlush:
			err = disk.Flush()
		case req.Type == nbdCmdWriteZeroes && length <= nbdSmallZeroes:
			_, err = disk.WriteAt(make([]byte, length), off)
		case req.Type == nbdCmdTrim || req.Type == nbdCmdWriteZeroes:
			err = disk.Discard(off, length)
		default:
			err = syscall.EINVAL
		}
		if err == nil && req.Flags&nbdCmdFlagFUA != 0 {
			err = disk.Flush()
		}
		if errors.Is(err, errPowerOff) {
			return err // a disk without power says nothing
		}
		reply := binary.BigEndian.AppendUint32(nil, nbdSimpleMagic)
		reply = binary.BigEndian.AppendUint32(reply, nbdErrno(err))
		reply = binary.BigEndian.AppendUint64(reply, req.Handle)
		if req.Type == nbdCmdRead && err == nil {
			reply = append(reply, data...)
		}
		if _, err := conn.Write(reply); err != nil {
			return disconnected(err)
		}
	}
}

// nbdHandshake negotiates until the client enters the transmission phase.
func nbdHandshake(in io.Reader, out io.Writer, size int64) error {
	hello := binary.BigEndian.AppendUint64(nil, nbdMagic)
	hello = binary.BigEndian.AppendUint64(hello, nbdOptMagic)
	hello = binary.BigEndian.AppendUint16(hello, nbdFlagFixedNewstyle|nbdFlagNoZeroes)
	if _, err := out.Write(hello); err != nil {
		return err
	}
	var clientFlags uint32
	if err := binary.Read(in, binary.BigEndian, &clientFlags); err != nil {
		return err
	}
	for {
		var opt struct {
			Magic  uint64
			Option uint32
			Length uint32
		}
		if err := binary.Read(in, binary.BigEndian, &opt); err != nil {
			return err
		}
		if opt.Magic != nbdOptMagic || opt.Length > 64<<10 {
			return fmt.Errorf("option %d with magic %#x and %d bytes", opt.Option, opt.Magic, opt.Length)
		}
		// The export's name does not matter: there is one.
		if _, err := io.CopyN(io.Discard, in, int64(opt.Length)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := binary.BigEndian.AppendUint64(nil, nbdReplyMagic)
			b = binary.BigEndian.AppendUint32(b, opt.Option)
			b = binary.BigEndian.AppendUint32(b, kind)
			b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
			_, err := out.Write(append(b, data...))
			return err
		}
		switch opt.Option {
		case nbdOptInfo, nbdOptGo:
			info := binary.BigEndian.AppendUint16(nil, nbdInfoExport)
			info = binary.BigEndian.AppendUint64(info, uint64(size))
			info = binary.BigEndian.AppendUint16(info, nbdTransmissionFlags)
			if err := reply(nbdRepInfo, info); err != nil {
				return err
			}
			if err := reply(nbdRepAck, nil); err != nil {
				return err
			}
			if opt.Option == nbdOptGo {
				return nil
			}
		case nbdOptAbort:
			_ = reply(nbdRepAck, nil)
			return errors.New("client aborted")
		default: // structured replies among them: the client does without
			if err := reply(nbdRepUnsup, nil); err != nil {
				return err
			}
		}
	}
}

// nbdErrno is the protocol's number of an error; those it knows are Linux's.
func nbdErrno(err error) uint32 {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno) && (errno == syscall.ENOSPC || errno == syscall.EINVAL || errno == syscall.EPERM):
		return uint32(errno)
	}
	return uint32(syscall.EIO)
}

// disconnected turns the ways in which a killed client goes into a quiet end.
func disconnected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// readOnlyByKernel is what is wrong with a filesystem that nobody on the node
// made read-only.
const readOnlyByKernel = "is read-only, as the kernel makes it after an error " +
	"(the node's kernel log says which)"

// Sickness says what is wrong with a mounted filesystem by what mountinfo tells
// of it, or nil.
func Sickness(rec *record.Volume, info *mount.Info) *FilesystemError {
	switch {
	case info.ShutDown():
		return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonShutDown,
			Detail: "was shut down, by the kernel after an error or by somebody"}
	case !info.ReadOnly() || wantsReadOnly(rec):
		return nil
	case slices.Contains(info.Options, "ro") && !slices.Contains(info.SuperOptions, "ro") &&
		!slices.Contains(info.SuperOptions, "emergency_ro"):
		return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonReadOnly,
			Detail: "was made read-only where it is mounted, by somebody on the node"}
	}
	return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonReadOnly,
		Detail: readOnlyByKernel}
}

// wantsReadOnly reports whether the volume's own mount options ask for it; the
// last of them counts.
func wantsReadOnly(rec *record.Volume) (ro bool) {
	for _, element := range rec.MountOptions {
		for word := range strings.SplitSeq(element, ",") {
			switch strings.TrimSpace(word) {
			case "ro":
				ro = true
			case "rw":
				ro = false
			}
		}
	}
	return ro
}

// AnswerWithin is how long a filesystem may take to answer before it is said
// that it does not. A disk's own time-outs are longer, so that an error of its
// own is told as what it is, a while later.
const AnswerWithin = 5 * time.Second

// Questions are those that filesystems were asked and have not answered, by
// volume. A filesystem that hangs holds the thread that asked, in the kernel,
// where nothing ends it: so it is asked nothing more until it has answered, and
// costs one thread.
type Questions struct {
	mu      sync.Mutex
	pending map[string]*question
	Within  time.Duration // for tests; 0: AnswerWithin
	// Late is told of a volume whose filesystem answered after all.
	Late func(id string)
}

type question struct {
	since time.Time
	done  chan struct{}
}

var ErrNoAnswer = errors.New("no answer")

// ask calls f, for at most AnswerWithin; then the error is ErrNoAnswer, and f
// goes on by itself. f must not touch what its caller goes on to use. done is
// called when f has returned, or was not called as an earlier question has no
// answer yet.
func (q *Questions) ask(ctx context.Context, id string, f func() error, done func()) error {
	answer := make(chan error, 1)
	go func() {
		defer done()
		answer <- q.Hold(id, f)
	}()
	timer := time.NewTimer(q.Patience())
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return ErrNoAnswer
	}
}

// Patience is how long an answer is waited for.
func (q *Questions) Patience() time.Duration {
	if q.Within != 0 {
		return q.Within
	}
	return AnswerWithin
}

// Hold calls f as the one question that the volume's filesystem is asked at a
// time. Where an earlier one has waited too long already it is ErrNoAnswer, and
// f is not called. It does not return before f does: its caller waits as long
// as it likes to.
func (q *Questions) Hold(id string, f func() error) error {
	mine := &question{since: time.Now(), done: make(chan struct{})}
	if !q.take(id, mine) {
		return ErrNoAnswer
	}
	err := f()
	q.mu.Lock()
	delete(q.pending, id)
	close(mine.done)
	q.mu.Unlock()
	if q.Late != nil && time.Since(mine.since) > q.Patience() {
		q.Late(id)
	}
	return err
}

// take waits for its turn, and reports whether it got it.
func (q *Questions) take(id string, mine *question) bool {
	for {
		q.mu.Lock()
		other := q.pending[id]
		if other == nil {
			if q.pending == nil {
				q.pending = map[string]*question{}
			}
			q.pending[id] = mine
			mine.since = time.Now()
		}
		q.mu.Unlock()
		if other == nil {
			return true
		}
		select {
		case <-other.done:
		case <-time.After(q.Patience() - time.Since(other.since)): // at once, where that is over
			return false
		}
	}
}

// answers asks a filesystem, whose root is open (O_PATH), whether it is alive,
// without writing to it.
func answers(root int) error {
	var st unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		return os.NewSyscallError("statx", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	disk.AwaitWrites(root)
	return nil
}

// AnswersAt is answers for the filesystem that is mounted at path.
func AnswersAt(path string) error {
	root, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(root)
	return answers(root)
}

// takesWrites proves that the filesystem whose root is open takes writes: a
// frozen one and one that was shut down answer every question else. The time of
// the last access to its root is set; users see a directory below. A full one
// is fine.
func takesWrites(root *os.File) error {
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, procFD(root), now, 0)
	if err == nil || disk.IsFull(err) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil
	}
	return &os.PathError{Op: "utimensat", Path: root.Name(), Err: err}
}

// procFD names what f refers to, whatever has become of its path.
func procFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// Diagnose puts what a filesystem answered into words; nil where it is well.
func Diagnose(rec *record.Volume, err error) *FilesystemError {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoAnswer):
		return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonNotResponding,
			Detail: fmt.Sprintf(
				"has not answered for %v: it is frozen (fsfreeze, a backup of the machine), "+
					"or the disk below it hangs", AnswerWithin)}
	case errors.Is(err, unix.EROFS):
		return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonReadOnly,
			Detail: readOnlyByKernel}
	}
	return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonShutDown,
		Detail: fmt.Sprintf("answers with an error: %v", err)}
}

// WellnessLocked looks at the mounted filesystem of a volume, whose root is
// open (O_PATH), and says what is wrong with it, or nil. It is called with the
// volume's lock held. With write set it writes, for only that finds all there
// can be; see takesWrites.
func (b *Backends) WellnessLocked(ctx context.Context, rec *record.Volume, root *os.File,
	info *mount.Info, write bool) *FilesystemError {
	if sick := Sickness(rec, info); sick != nil {
		return sick
	}
	// A descriptor of the question's own: ours is closed when we do not wait
	// any longer.
	fd, err := unix.FcntlInt(root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return &FilesystemError{ID: rec.ID, Reason: v1alpha1.ReasonFailed,
			Detail: fmt.Sprintf("cannot be looked at: %v", err)}
	}
	own := os.NewFile(uintptr(fd), root.Name())
	return Diagnose(rec, b.Questions.ask(ctx, rec.ID, func() error {
		if err := answers(int(own.Fd())); err != nil || !write || wantsReadOnly(rec) {
			return err
		}
		return takesWrites(own)
	}, func() { own.Close() }))
}

package backend

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// newBackends are backends that note the steps they take.
func newBackends(t *testing.T) (b *Backends, steps *[]string) {
	t.Helper()
	steps = &[]string{}
	return &Backends{
		DeviceDir: t.TempDir(),
		Log:       slog.New(slog.NewTextHandler(io.Discard, nil)),
		Fault: func(step string) error {
			*steps = append(*steps, step)
			return nil
		},
	}, steps
}

// opened is a volume of a pool of its own, with its directory open.
func opened(t *testing.T, rec *record.Volume) *Volume {
	t.Helper()
	cfg := &config.Pool{Name: "default", Path: t.TempDir()}
	r, _, err := disk.Open(cfg, &disk.Expectation{MayCreate: true})
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	dir, err := r.EnsureDir(rec.ID, 0o700)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return &Volume{Pool: cfg.Name, Rec: rec, Root: r, Dir: dir}
}

// TestPlainDirectory makes, grows and looks into a directory that nothing
// limits: of the two backends it is all that needs no root.
func TestPlainDirectory(t *testing.T) {
	b, steps := newBackends(t)
	rec := &record.Volume{ID: "pvc-1", Backend: record.BackendDirectory,
		VolumeMode: record.ModeFilesystem, Enforcement: record.EnforcementNone, SizeBytes: mib,
		Owner: int64(os.Getuid()), Group: int64(os.Getgid()), Mode: 0o2770}
	v := opened(t, rec)
	require.NoError(t, b.Of(rec).Make(t.Context(), &Making{Volume: *v}))
	require.Equal(t, []string{"mkdir data", "chown", "write record"}, *steps)
	written, err := disk.ReadEntry(v.Root.Dir, rec.ID, rec.ID)
	require.NoError(t, err)
	require.Equal(t, rec, written)

	up, err := b.Of(rec).Up(t.Context(), v, nil)
	require.NoError(t, err)
	require.Nil(t, up, "there is no device to be looked at")
	f, err := b.Of(rec).Open(v)
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	require.NoError(t, f.Close())
	require.EqualValues(t, unix.S_IFDIR|0o2770, st.Mode)

	require.NoError(t, b.Of(rec).Grow(t.Context(), v, 2*mib, nil), "it need not be up for it")
	reached, err := b.Of(rec).Reached(v)
	require.NoError(t, err)
	require.Zero(t, reached)
	usage, err := b.Of(rec).Usage(v.Root, rec)
	require.NoError(t, err)
	require.False(t, usage.Known, "nothing counts it")

	empty, err := b.Of(rec).IsEmpty(v)
	require.NoError(t, err)
	require.True(t, empty)
	require.NoError(t, os.WriteFile(filepath.Join(v.Dir.Path(), record.DataDir, "f"), nil, 0o600))
	empty, err = b.Of(rec).IsEmpty(v)
	require.NoError(t, err)
	require.False(t, empty)

	require.NoError(t, b.TakeDown(t.Context(), rec.ID, v.Dir), "there is nothing to take down")
}

// TestOpenWithoutData says what is not as the record says, for each backend.
func TestOpenWithoutData(t *testing.T) {
	b, _ := newBackends(t)
	for _, rec := range []*record.Volume{
		{ID: "pvc-1", Backend: record.BackendDirectory},
		{ID: "pvc-1", Backend: record.BackendLoop},
		{ID: "pvc-1", Backend: record.BackendLoop, VolumeMode: record.ModeBlock},
		{ID: "pvc-1", Backend: "of a later version"},
	} {
		v := opened(t, rec)
		mismatch := &disk.MismatchError{}
		_, err := b.Of(rec).Open(v)
		require.ErrorAs(t, err, &mismatch)
		_, err = b.Of(rec).Up(t.Context(), v, func() (bool, error) { return false, nil })
		require.ErrorAs(t, err, &mismatch)
	}
	require.False(t, IsKnown(&record.Volume{Backend: "of a later version"}))
}

// TestImageTakesItsBlocks, and has reached its size, whatever its record says.
func TestImageTakesItsBlocks(t *testing.T) {
	b, _ := newBackends(t)
	rec := &record.Volume{ID: "pvc-1", Backend: record.BackendLoop, SizeBytes: mib}
	v := opened(t, rec)
	image := filepath.Join(v.Dir.Path(), record.ImageFile)
	require.NoError(t, os.WriteFile(image, make([]byte, mib/2), 0o600))
	require.NoError(t, os.Truncate(image, 4*mib))

	taken, err := b.Of(rec).Taken(v.Root, rec, rec.ID+"/"+record.ImageFile)
	require.NoError(t, err)
	require.EqualValues(t, mib/2, taken)
	reached, err := b.Of(rec).Reached(v)
	require.NoError(t, err)
	require.EqualValues(t, 4*mib, reached)

	_, err = b.Of(rec).Taken(v.Root, rec, "gone/"+record.ImageFile)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.True(t, HasDevice(rec))
	require.False(t, TakesAll(rec))
	rec.Allocation = record.AllocationThick
	require.True(t, TakesAll(rec))
}

// TestOpenImage refuses an image that is not what its record says.
func TestOpenImage(t *testing.T) {
	rec := record.Volume{ID: "pvc-1", Backend: record.BackendLoop, SizeBytes: mib,
		VolumeMode: record.ModeFilesystem}
	v := opened(t, &rec)
	path := filepath.Join(v.Dir.Path(), record.ImageFile)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	open := func(rec record.Volume) error {
		f, err := openImage(&rec, v.Dir)
		if err == nil {
			require.NoError(t, f.Close())
		}
		return err
	}
	require.NoError(t, os.Truncate(path, mib))
	require.NoError(t, open(rec))
	require.NoError(t, os.Truncate(path, 2*mib))
	require.NoError(t, open(rec), "a growth came so far")

	mismatch := &disk.MismatchError{}
	require.NoError(t, os.Truncate(path, mib-1))
	require.ErrorAs(t, open(rec), &mismatch)
	require.NoError(t, os.Truncate(path, mib))
	raw := rec
	raw.EverRaw = true
	require.ErrorAs(t, open(raw), &mismatch, "what a tenant wrote to a raw device is not mounted")
	raw.VolumeMode = record.ModeBlock
	require.NoError(t, open(raw))
}

// TestLimitInWholeBlocks: a filesystem rounds a limit up to its blocks, of 64
// KiB where pages are that large. That is the volume's size, and no repair.
func TestLimitInWholeBlocks(t *testing.T) {
	rec := &record.Volume{SizeBytes: 10*mib + 4096}
	require.True(t, LimitHolds(rec, 10*mib+4096))
	require.True(t, LimitHolds(rec, 10*mib+64<<10))
	require.False(t, LimitHolds(rec, 10*mib), "less than its size")
	require.False(t, LimitHolds(rec, 10*mib+128<<10))
	require.False(t, LimitHolds(rec, 0), "none")
	rec.GrowingTo = 20 * mib
	require.True(t, LimitHolds(rec, 20*mib), "it grows")
}

// TestSickness is told by what mountinfo says of a filesystem.
func TestSickness(t *testing.T) {
	for _, c := range []struct {
		name              string
		mount, filesystem []string
		asked             []string
		want              string
	}{
		{"well", []string{"rw"}, []string{"rw"}, nil, ""},
		{"the kernel made it read-only", []string{"ro"}, []string{"ro"}, nil,
			v1alpha1.ReasonReadOnly},
		{"it says so only there", []string{"rw"}, []string{"rw", "emergency_ro"}, nil,
			v1alpha1.ReasonReadOnly},
		{"somebody on the node did", []string{"ro"}, []string{"rw"}, nil, v1alpha1.ReasonReadOnly},
		{"it is to be so", []string{"ro"}, []string{"ro"}, []string{"noatime,ro"}, ""},
		{"the last word counts", []string{"ro"}, []string{"ro"}, []string{"ro", "rw"},
			v1alpha1.ReasonReadOnly},
		{"it was shut down", []string{"rw"}, []string{"rw", "shutdown"}, []string{"ro"},
			v1alpha1.ReasonShutDown},
	} {
		sick := Sickness(&record.Volume{ID: "pvc-1", MountOptions: c.asked},
			&mount.Info{Options: c.mount, SuperOptions: c.filesystem})
		if c.want == "" {
			require.Nil(t, sick, c.name)
			continue
		}
		require.NotNil(t, sick, c.name)
		require.Equal(t, c.want, sick.Reason, c.name)
	}
}

// TestOwnMount tells the agent's mounts from those of pods.
func TestOwnMount(t *testing.T) {
	for _, c := range []struct {
		use  mount.Use
		want bool
	}{
		{mount.Use{Info: mount.Info{Mountpoint: "/srv/pool/pvc-1/mount", Root: "/"}}, true},
		{mount.Use{Info: mount.Info{Mountpoint: "/host/srv/pool/pvc-1/mount", Root: "/"}}, true},
		{mount.Use{Info: mount.Info{Mountpoint: "/srv/pool/pvc-1/mount", Root: "/data"}}, false},
		{mount.Use{Info: mount.Info{Mountpoint: "/srv/pool/pvc-2/mount", Root: "/"}}, false},
		{mount.Use{Info: mount.Info{Mountpoint: "/srv/pool/not-pvc-1/mount", Root: "/"}}, false},
		{mount.Use{Info: mount.Info{Mountpoint: "/var/lib/kubelet/pods/1/mount", Root: "/data"}},
			false},
		{mount.Use{Info: mount.Info{Mountpoint: "/srv/pool/pvc-1/mount", Root: "/@",
			FSType: "btrfs"}}, true},
		{mount.Use{Info: mount.Info{Mountpoint: "/srv/pool/pvc-1/mount", Root: "/@/data",
			FSType: "btrfs"}}, false},
	} {
		require.Equal(t, c.want, ownMount(c.use, "pvc-1"), "%+v", c.use)
	}
}

// TestStrayText counts what was found, for people.
func TestStrayText(t *testing.T) {
	require.Empty(t, StrayText(nil, nil))
	require.Equal(t, "1 subvolumes in it were outside of its group, and "+
		"2 subvolumes in it were charged to other groups as well, and "+
		"3 subvolumes that are not in it were charged to it",
		StrayText([]btrfs.Stray{{Outside: true}, {}, {}}, []uint64{1, 2, 3}))
}

// TestLinksAreKeptApart: a link is taken away before its device gets another
// image, and others are not.
func TestLinksAreKeptApart(t *testing.T) {
	b, _ := newBackends(t)
	link := func(id, to string) string {
		at := filepath.Join(b.DeviceDir, id)
		require.NoError(t, os.Symlink(to, at))
		b.noteLink(id, to)
		return at
	}
	one, two := link("pvc-1", "/dev/loop1000001"), link("pvc-2", "/dev/loop1000002")
	require.NoError(t, b.dropLinkTo("/dev/loop1000001"))
	require.NoError(t, b.dropLinkTo("/dev/loop1000001"), "a second time")
	for at, want := range map[string]bool{one: false, two: true} {
		_, err := os.Lstat(at)
		require.Equal(t, want, err == nil, at)
	}
}

// TestFlagNotesArePutAway leaves nothing behind.
func TestFlagNotesArePutAway(t *testing.T) {
	b, steps := newBackends(t)
	at := t.TempDir()
	dir, err := beneath.Open(at)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, NewFlagNotes(b.Fault, dir).Forget())
	require.NoError(t, os.WriteFile(filepath.Join(at, record.FlagsFile), []byte("{}"), 0o600))
	require.NoError(t, NewFlagNotes(b.Fault, dir).Forget())
	require.NoFileExists(t, filepath.Join(at, record.FlagsFile))
	require.Equal(t, []string{"recheck: forget flags", "recheck: forget flags"}, *steps)
}

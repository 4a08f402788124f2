package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// walkBudget is how many files of a directory volume Verify looks at: enough to
// notice a tenant who left its quota, and little enough that a volume of a
// hundred million files does not hold it up.
const walkBudget = 20_000

// View is what Verify sees of a store: its pools, what it knows while it runs,
// and how it puts things right. Nothing of it is called with a lock held that
// it could wait for.
type View interface {
	Disks
	Running
	Repairs
}

// Disks are the pools of a view, by name.
type Disks interface {
	// Pools are the pools in the order of the configuration.
	Pools() []config.Pool
	// Expected is what is known of a pool from elsewhere than its disk.
	Expected(pool string) disk.Expectation
	// Open opens a pool for a repair, proven anew. It is a *disk.OfflineError
	// where the pool is not there, hangs, or is another's.
	Open(pool string) (*disk.Root, error)
	// Backends are those of the store's process.
	Backends() *backend.Backends
}

// Running is what a store knows that runs.
type Running interface {
	// Lock waits for the operations on a volume, and keeps others out until it
	// is unlocked. TryLock is an error where it would have to wait.
	Lock(ctx context.Context, id string) (unlock func(), err error)
	TryLock(id string) (unlock func(), err error)
	// IsDrawn reports whether a quota id of the pool's filesystem is
	// somebody's: that of a volume that is being made is in no record that is
	// in its place.
	IsDrawn(pool string, id uint32) bool
}

// Repairs are what a store alone can do. A second call changes nothing.
type Repairs interface {
	// Scrap clears away what an unfinished create left of a volume, whose lock
	// is held.
	Scrap(ctx context.Context, pool, id string) error
	// EnsureLink makes the link at the old path of an adopted volume.
	EnsureLink(r *disk.Root, rec *record.Volume) error
	// FinishAdoption carries on an adoption that was interrupted after the data
	// was moved.
	FinishAdoption(ctx context.Context, pool string, v *backend.Volume) error
}

// Live compares what is on a running store's disks with what the kernel does:
// records, quotas, images, loop devices, mounts, links. It changes nothing, and
// waits for operations on the volume it looks at. It is run after every test.
func Live(ctx context.Context, view View) []Finding {
	return newVerifier(view, true).run(ctx)
}

// Pools is Live for a store that does not run, as in `quarry verify`: nothing
// is known but the disks and what is expected of them. Since an agent may be at
// work meanwhile, it looks twice and reports what it found both times. Where the
// view has not all of the node's pools, what no volume of theirs explains may be
// another pool's: that is a note, and nothing is repaired.
func Pools(ctx context.Context, view View, all bool) []Finding {
	look := func() []Finding {
		v := newVerifier(view, false)
		v.all = all
		return v.run(ctx)
	}
	first := look()
	if len(first) == 0 {
		return nil
	}
	again := look()
	return slices.DeleteFunc(again, func(f Finding) bool {
		return !slices.ContainsFunc(first, func(g Finding) bool {
			return g.Pool == f.Pool && g.Volume == f.Volume && g.What == f.What
		})
	})
}

func newVerifier(view View, live bool) *verifier {
	v := &verifier{view: view, live: live, all: true}
	for _, cfg := range view.Pools() {
		v.pools = append(v.pools, &pool{cfg: cfg, view: view})
	}
	return v
}

// pool is one pool of the view.
type pool struct {
	cfg  config.Pool
	view View
}

func (p *pool) name() string { return p.cfg.Name }

// key names what is in the pool among those of all pools.
func (p *pool) key(name string) string { return p.cfg.Name + "/" + name }

func (p *pool) open() (*disk.Root, error) { return p.view.Open(p.cfg.Name) }

// with opens the pool for one call.
func (p *pool) with(do func(*disk.Root) error) error {
	r, err := p.open()
	if err != nil {
		return err
	}
	defer r.Close()
	return do(r)
}

// verifier is one look at everything.
type verifier struct {
	view  View
	pools []*pool
	// live: the store runs, so its locks keep its operations out.
	live bool
	// all: the pools are all that the node has.
	all bool
	// loops are the loop devices of the machine, by the file beneath them.
	loops map[loop.Backing][]loop.Device
	// quotas are what was found on each filesystem, by its key.
	quotas map[string]*quotaFindings
	// volumes are the records found, by id. incomplete: a pool could not be
	// read, so that more may exist.
	volumes    map[string]*record.Volume
	incomplete bool

	findings []Finding
}

func (v *verifier) add(f Finding) { v.findings = append(v.findings, f) }

// leak adds what is there and belongs to no volume of the pools.
func (v *verifier) leak(f Finding) {
	if !v.all {
		f.Severity, f.Repair, f.apply = SeverityNote, "", nil
		f.What += ", or of a pool that was not looked at"
	}
	v.add(f)
}

// find adds what a person has to look at, or what the agent is at work on.
func (v *verifier) find(severity Severity, p *pool, volume, format string, args ...any) {
	v.add(Finding{Severity: severity, Pool: p.name(), Volume: volume,
		What: fmt.Sprintf(format, args...)})
}

// failed reports that something could not be looked at.
func (v *verifier) failed(p *pool, name string, err error) {
	v.find(SeverityError, p, name, "cannot be looked at: %v", err)
}

func (v *verifier) run(ctx context.Context) []Finding {
	v.loops = map[loop.Backing][]loop.Device{}
	v.quotas = map[string]*quotaFindings{}
	v.volumes = map[string]*record.Volume{}
	devices, err := loop.List()
	if err != nil {
		v.add(Finding{Severity: SeverityError,
			What: fmt.Sprintf("loop devices cannot be listed: %v", err)})
	}
	for _, d := range devices {
		v.loops[d.Backing] = append(v.loops[d.Backing], d)
	}
	for _, p := range v.pools {
		if ctx.Err() != nil {
			v.add(Finding{Severity: SeverityNote,
				What: "not all was looked at: " + ctx.Err().Error()})
			return v.findings
		}
		v.pool(ctx, p)
	}
	v.leakedQuotas(ctx)
	v.deviceLinks()
	return v.findings
}

func (v *verifier) pool(ctx context.Context, p *pool) {
	want := v.view.Expected(p.name())
	want.MayCreate = false
	r, _, err := disk.Open(&p.cfg, &want)
	if err != nil {
		v.incomplete = true
		v.find(SeverityError, p, "", "%s", err.Error())
		return
	}
	defer r.Close()
	key, err := disk.FilesystemKey(r.File())
	if err != nil {
		v.incomplete = true
		v.failed(p, "", err)
		return
	}
	if v.quotas[key] == nil {
		v.quotas[key] = &quotaFindings{owners: map[uint64]string{}}
	}
	q := v.quotas[key]
	q.pools = append(q.pools, p)
	names, err := r.Names()
	if err != nil {
		v.incomplete = true
		v.failed(p, "", err)
		return
	}
	slices.Sort(names)
	for _, name := range names {
		if record.CheckID(name) == nil && !disk.IsLink(r.Dir, name) && ctx.Err() == nil {
			v.volume(ctx, p, r, q, name)
		}
	}
	v.trash(ctx, p, r, q)
	v.tmp(ctx, p, r, q)
	v.claimIndex(p, r)
	v.deletedImages(p)
}

// volume looks at the directory name of a pool.
func (v *verifier) volume(ctx context.Context, p *pool, r *disk.Root, q *quotaFindings,
	name string) {
	if v.live {
		unlock, err := v.view.Lock(ctx, name)
		if err != nil {
			v.find(SeverityNote, p, name, "%s", err.Error())
			return
		}
		defer unlock()
	}
	rec, err := disk.ReadEntry(r.Dir, name, name)
	if errors.Is(err, fs.ErrNotExist) {
		return // deleted since it was listed
	}
	if err != nil {
		v.incomplete = true
		v.find(SeverityError, p, name, "it cannot be read as a volume, and is left alone: %v", err)
		return
	}
	if copied := disk.CopyOn(r, p.name(), rec); copied != nil {
		q.unknown = append(q.unknown, name) // its quota id may be in use by the volume
		v.find(SeverityError, p, name, "%s", copied.Error())
		return
	}
	if other := v.volumes[name]; other != nil {
		v.find(SeverityError, p, name, "another pool has a volume of this id too")
	}
	v.volumes[name] = rec
	dir, err := r.OpenDir(name)
	if err != nil {
		v.failed(p, name, err)
		return
	}
	defer dir.Close()
	q.own(v, p, name, rec)
	at := &place{verifier: v, pool: p, root: r, dir: dir, rec: rec}
	at.recordSize()
	if unfinished := at.adoption(); unfinished {
		return
	}
	switch {
	case !backend.IsKnown(rec):
		at.error("its backend %q is not one this program knows", rec.Backend)
	case backend.HasDevice(rec):
		at.image(ctx)
	default:
		at.directory(ctx)
	}
}

// place is a volume that is being looked at.
type place struct {
	*verifier
	pool *pool
	root *disk.Root
	dir  *beneath.Dir
	rec  *record.Volume
}

// opened is the volume as its backend knows it.
func (at *place) opened() *backend.Volume {
	return &backend.Volume{Pool: at.pool.name(), Rec: at.rec, Root: at.root, Dir: at.dir}
}

func (at *place) error(format string, args ...any) {
	at.find(SeverityError, at.pool, at.rec.ID, format, args...)
}

func (at *place) warning(format string, args ...any) {
	at.find(SeverityWarning, at.pool, at.rec.ID, format, args...)
}

// repairable reports what apply puts right. Pool and volume are opened anew for
// it, under the volume's lock.
func (at *place) repairable(severity Severity, repair string,
	apply func(context.Context, *place) error, format string, args ...any) {
	view, p, id := at.view, at.pool, at.rec.ID
	at.add(Finding{Severity: severity, Pool: p.name(), Volume: id,
		What: fmt.Sprintf(format, args...), Repair: repair,
		apply: func(ctx context.Context) error {
			unlock, err := view.Lock(ctx, id)
			if err != nil {
				return err
			}
			defer unlock()
			r, err := p.open()
			if err != nil {
				return err
			}
			defer r.Close()
			rec, err := disk.ReadEntry(r.Dir, id, id)
			if err != nil {
				return err
			}
			dir, err := r.OpenDir(id)
			if err != nil {
				return err
			}
			defer dir.Close()
			return apply(ctx, &place{verifier: at.verifier, pool: p, root: r, dir: dir, rec: rec})
		}})
}

// trash looks at the entries of the trash. That they are there is no finding:
// they wait for their time, or are being freed.
func (v *verifier) trash(ctx context.Context, p *pool, r *disk.Root, q *quotaFindings) {
	names, err := disk.NamesIn(r.Meta, record.TrashDir)
	if err != nil {
		v.failed(p, record.TrashDir, err)
		return
	}
	for _, name := range names {
		where := record.TrashDir + "/" + name
		id, ok := disk.TrashID(name)
		if !ok {
			v.find(SeverityWarning, p, where, "it is no entry of the trash, and nothing frees it")
			continue
		}
		trash, err := r.Meta.OpenDir(record.TrashDir)
		if err != nil {
			v.failed(p, where, err)
			return
		}
		if _, err := disk.ReadNote(trash, name); err != nil && !disk.IsFreeing(name) &&
			!errors.Is(err, fs.ErrNotExist) {
			v.find(SeverityWarning, p, where,
				"when it is to be freed cannot be read, and it is kept: %v", err)
		}
		if rec, err := disk.ReadEntry(trash, name, id); err == nil {
			q.own(v, p, where, rec)
		} else if !errors.Is(err, fs.ErrNotExist) {
			q.unknown = append(q.unknown, where)
		}
		v.unused(ctx, p, trash, name, where)
		trash.Close()
	}
}

// tmp looks at what is being made, or was left by a crash.
func (v *verifier) tmp(ctx context.Context, p *pool, r *disk.Root, q *quotaFindings) {
	names, err := disk.NamesIn(r.Meta, record.TmpDir)
	if err != nil {
		v.failed(p, record.TmpDir, err)
		return
	}
	for _, name := range names {
		where := record.TmpDir + "/" + name
		if record.CheckID(name) != nil {
			if !strings.HasPrefix(name, ".") { // a probe's file, which the next probe makes anew
				v.find(SeverityWarning, p, where,
					"it was not made by Quarry, and nothing clears it away")
			}
			continue
		}
		tmp, err := r.Meta.OpenDir(record.TmpDir)
		if err != nil {
			v.failed(p, where, err)
			return
		}
		if rec, err := disk.ReadEntry(tmp, name, name); err == nil {
			q.own(v, p, where, rec)
		} else if !errors.Is(err, fs.ErrNotExist) {
			q.unknown = append(q.unknown, where)
		}
		tmp.Close()
		v.unfinished(ctx, p, name, where)
	}
}

func (v *verifier) unfinished(_ context.Context, p *pool, name, where string) {
	if !v.live {
		v.find(SeverityNote, p, where,
			"a volume that is being made, or that a crash left; the agent clears it away")
		return
	}
	unlock, err := v.view.TryLock(name)
	if err != nil {
		return // it is being made
	}
	defer unlock()
	there := false
	if r, err := p.open(); err == nil {
		defer r.Close()
		tmp, err := r.Meta.OpenFile(path.Join(record.TmpDir, name), os.O_RDONLY, 0)
		if there = err == nil; there {
			tmp.Close()
		}
	}
	if !there {
		return
	}
	view := v.view
	v.add(Finding{Severity: SeverityWarning, Pool: p.name(), Volume: where,
		What:   "a volume that was never finished",
		Repair: "take it down and free it",
		apply: func(ctx context.Context) error {
			unlock, err := view.Lock(ctx, name)
			if err != nil {
				return err
			}
			defer unlock()
			return view.Scrap(ctx, p.name(), name)
		}})
}

// unused proves that nothing holds on to an entry of the trash: no device, no
// mount.
func (v *verifier) unused(_ context.Context, p *pool, parent *beneath.Dir, name, where string) {
	dir, err := parent.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return // freed since it was listed
	}
	if err != nil {
		v.failed(p, where, err)
		return
	}
	defer dir.Close()
	backends := v.view.Backends()
	takeDown := func(ctx context.Context) error {
		r, err := p.open()
		if err != nil {
			return err
		}
		defer r.Close()
		dir, err := r.Meta.OpenDir(where)
		if err != nil {
			return err
		}
		defer dir.Close()
		return backends.Release(ctx, dir)
	}
	if mounted, err := backend.IsMounted(dir); err != nil {
		v.failed(p, where, err)
	} else if mounted {
		v.add(Finding{Severity: SeverityWarning, Pool: p.name(), Volume: where,
			What: "its filesystem is still mounted", Repair: "unmount and detach it",
			apply: takeDown})
	}
	devices, err := backend.DevicesOf(dir)
	if err != nil {
		v.failed(p, where, err)
	}
	for _, d := range devices {
		v.add(Finding{Severity: SeverityWarning, Pool: p.name(), Volume: where,
			What:   fmt.Sprintf("%s is still over its image%s", d.Path, backend.HoldersText(d)),
			Repair: "unmount and detach it", apply: takeDown})
	}
}

// deletedImages finds loop devices over images of the pool that no name leads
// to any more: they keep the space.
func (v *verifier) deletedImages(p *pool) {
	for _, devices := range v.loops {
		for _, d := range devices {
			if !d.Deleted || !strings.HasPrefix(d.BackingPath, filepath.Clean(p.cfg.Path)+"/") {
				continue
			}
			v.add(Finding{Severity: SeverityWarning, Pool: p.name(),
				What: fmt.Sprintf("%s is over a deleted image (%s)%s", d.Path, d.Name,
					backend.HoldersText(d)),
				Repair: "detach it",
				apply:  func(ctx context.Context) error { return loop.DetachBacking(ctx, d) }})
		}
	}
}

// claimIndex looks for links by claim that lead nowhere.
func (v *verifier) claimIndex(p *pool, r *disk.Root) {
	err := disk.DanglingClaims(r, func(id, _, _ string) bool { return v.volumes[id] != nil },
		func(dir *beneath.Dir, namespace, claim string) error {
			v.add(Finding{Severity: SeverityWarning, Pool: p.name(),
				Volume: path.Join(record.ByClaimDir, namespace, claim),
				What:   "the link leads to no volume", Repair: "remove it",
				apply: func(context.Context) error {
					r, err := p.open()
					if err != nil {
						return err
					}
					defer r.Close()
					dir, err := r.Meta.OpenDir(path.Join(record.ByClaimDir, namespace))
					if err != nil {
						return err
					}
					defer dir.Close()
					return dir.Unlink(claim)
				}})
			return nil
		})
	if err != nil {
		v.failed(p, record.ByClaimDir, err)
	}
}

// deviceLinks looks for links in the device directory that are no Block
// volume's.
func (v *verifier) deviceLinks() {
	if v.incomplete {
		return
	}
	dir := v.view.Backends().DeviceDir
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			v.add(Finding{Severity: SeverityError, What: err.Error()})
		}
		return
	}
	for _, e := range entries {
		if rec := v.volumes[e.Name()]; rec != nil && rec.VolumeMode == record.ModeBlock {
			continue // looked at with its volume
		}
		link := filepath.Join(dir, e.Name())
		v.leak(Finding{Severity: SeverityWarning, Volume: e.Name(),
			What: fmt.Sprintf("%s is the link of no Block volume", link), Repair: "remove it",
			apply: func(context.Context) error { return os.Remove(link) }})
	}
}

// recordSize reports a record that an earlier version wrote without a bound. It
// is read and the volume is served, but nothing like it is written any more.
func (at *place) recordSize() {
	st, err := at.dir.Stat(record.VolumeFile)
	if err != nil || st.Size <= record.MaxSize {
		return
	}
	at.repairable(SeverityWarning, "write it again without the labels that are not kept any more",
		func(_ context.Context, at *place) error { return disk.WriteVolume(at.dir, at.rec) },
		"its record has %d bytes, larger than what is written now (%d)", st.Size, record.MaxSize)
}

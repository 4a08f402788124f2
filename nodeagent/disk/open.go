package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Expectation is what is known of a pool from elsewhere than its disk. The zero
// value expects nothing, makes nothing, and takes no disk from anybody.
type Expectation struct {
	// UID is the identity the pool must have; empty: any.
	UID string
	// MayCreate: where there is no pool yet, make one.
	MayCreate bool
	// Never: there has never been a pool, or a person said that it is to be
	// forgotten. It counts as long as no identity is known, and opens nothing.
	Never bool
	// ClusterID is the cluster the disk must belong to, where the disk names
	// one.
	ClusterID string
	// TakeOver is the other cluster whose disk is made this one's, should it be
	// there. A disk of any other is not touched.
	TakeOver string
	// TakeFrom is who had the disk last (record.PoolHolder.String) and has it
	// no more, or Anybody. A disk that another node or machine had last is not
	// touched else.
	TakeFrom string
	// By is who opens it, as the disk is to name its holder. Without a node it
	// is somebody who only looks, and may look at everybody's.
	By record.PoolHolder
}

// Root is an open pool whose identity was checked.
type Root struct {
	*beneath.Dir
	// Meta is the pool's own directory, record.MetaDir.
	Meta *beneath.Dir
	// UID is its identity.
	UID string
	// End says that the operation that opened it came back; nil: nobody asks.
	End func()
}

// Close closes it.
func (r *Root) Close() error {
	if r.End != nil {
		r.End()
	}
	return errors.Join(r.Meta.Close(), r.Dir.Close())
}

// Sub opens one of the pool's own directories, making it where it is missing.
func (r *Root) Sub(name string) (*beneath.Dir, error) { return r.Meta.EnsureDir(name, 0o700) }

// Open opens a pool and proves that it is the one that is expected; else it is
// an *OfflineError. It may make a pool where there is none, and take one over
// from another cluster, and changes nothing but that.
func Open(cfg *config.Pool, want *Expectation) (*Root, *record.Pool, error) {
	off := func(reason string, err error) (*Root, *record.Pool, error) {
		return nil, nil, &OfflineError{Pool: cfg.Name, Reason: reason, Err: err}
	}
	dir, err := beneath.Open(cfg.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return off(OfflineMissing, fmt.Errorf("there is no directory %s", cfg.Path))
	}
	if err != nil {
		return nil, nil, OfflineFor(cfg.Name, err)
	}
	if err := checkPlace(cfg, want, dir); err != nil {
		dir.Close()
		return nil, nil, OfflineFor(cfg.Name, err)
	}

	meta, identity, err := openIdentity(cfg, want, dir)
	if err != nil {
		dir.Close()
		if IsUnreadable(err) {
			return off(OfflineUnreadable, fmt.Errorf("%s: %w",
				filepath.Join(cfg.Path, record.MetaDir, record.PoolFile), err))
		}
		return nil, nil, OfflineFor(cfg.Name, err)
	}

	r := &Root{Dir: dir, Meta: meta, UID: identity.UID}
	if want.UID != "" && identity.UID != want.UID {
		r.Close()
		return off(OfflineSwapped, fmt.Errorf("%s holds pool %s (made as %s on %s), not %s",
			cfg.Path, identity.UID, identity.Name, identity.Node, want.UID))
	}
	if want.ClusterID != "" && identity.ClusterID != "" && identity.ClusterID != want.ClusterID {
		if want.TakeOver != identity.ClusterID {
			r.Close()
			return off(OfflineForeign, fmt.Errorf("%s holds pool %s of another cluster (%s)",
				cfg.Path, identity.UID, identity.ClusterID))
		}
		if identity, err = takeOver(meta, identity, want); err != nil {
			r.Close()
			return nil, nil, OfflineFor(cfg.Name,
				fmt.Errorf("take over %s from cluster %s: %w", cfg.Path, want.TakeOver, err))
		}
	}
	if err := mayHave(cfg, identity, want); err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, identity, nil
}

// checkPlace says why the directory cannot be the pool, whatever is in it.
func checkPlace(cfg *config.Pool, want *Expectation, dir *beneath.Dir) error {
	if want.By.Node != "" {
		if err := checkFilesystem(cfg, dir.File()); err != nil {
			return err
		}
	}
	if !cfg.RequireMountpoint {
		return nil
	}
	ok, err := isMountpoint(cfg.Path, dir.File())
	if err == nil && !ok {
		err = fmt.Errorf("%s is not a mount point, and requireMountpoint is set", cfg.Path)
	}
	if err != nil {
		return &OfflineError{Pool: cfg.Name, Reason: OfflineNoMountpoint, Err: err}
	}
	return nil
}

// openIdentity opens the pool's own directory and reads who it is, making a
// pool where there is none and that may be.
func openIdentity(cfg *config.Pool, want *Expectation,
	dir *beneath.Dir) (*beneath.Dir, *record.Pool, error) {
	meta, err := dir.OpenDir(record.MetaDir)
	var identity *record.Pool
	if err == nil {
		identity, err = readIdentity(meta)
	}
	if err == nil {
		return meta, identity, nil
	}
	if meta != nil {
		meta.Close()
	}

	off := func(reason string, err error) error {
		return &OfflineError{Pool: cfg.Name, Reason: reason, Err: err}
	}
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	case want.UID != "":
		return nil, nil, off(OfflineMissing, fmt.Errorf(
			"%s holds no pool, and pool %s is known to exist: its disk is not mounted",
			cfg.Path, want.UID))
	case !want.MayCreate:
		return nil, nil, off(OfflineUninitialized, fmt.Errorf(
			"%s holds no pool yet, and the cluster could not be asked whether it should", cfg.Path))
	}
	if err := alone(dir.File()); err != nil {
		return nil, nil, err
	}
	return initialize(cfg, want, dir)
}

// takeOver writes this cluster into the identity of a pool of another one: from
// then on the disk is foreign there. Where it was made stays.
func takeOver(meta *beneath.Dir, identity *record.Pool, want *Expectation) (*record.Pool, error) {
	ours := *identity
	ours.ClusterID = want.ClusterID
	by := want.By
	ours.Holder = &by
	data, err := record.EncodePool(&ours)
	if err != nil {
		return nil, err
	}
	return &ours, meta.WriteFile(record.PoolFile, data, 0o600) // durable when it returns
}

func readIdentity(meta *beneath.Dir) (*record.Pool, error) {
	data, err := meta.ReadFile(record.PoolFile, record.MaxSize)
	if err != nil {
		return nil, err
	}
	return record.DecodePool(data)
}

// initialize makes a pool of the directory: the identity file is the commit.
func initialize(cfg *config.Pool, want *Expectation,
	dir *beneath.Dir) (*beneath.Dir, *record.Pool, error) {
	meta, err := dir.EnsureDir(record.MetaDir, 0o700)
	if err != nil {
		return nil, nil, err
	}
	if identity, err := readIdentity(meta); err == nil {
		return meta, identity, nil // somebody was faster
	}

	by := want.By
	identity := &record.Pool{
		UID:       uuid.NewString(),
		CreatedAt: time.Now().UTC().Truncate(time.Second),
		ClusterID: want.ClusterID,
		Node:      want.By.Node,
		Name:      cfg.Name,
		Holder:    &by,
	}
	data, err := record.EncodePool(identity)
	if err == nil {
		err = meta.WriteFile(record.PoolFile, data, 0o600)
	}
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		meta.Close()
		return nil, nil, fmt.Errorf("make a pool of %s: %w", cfg.Path, err)
	}
	return meta, identity, nil
}

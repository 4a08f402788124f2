package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// ignoreFull passes by that a filesystem has no room, or no inodes, left.
func ignoreFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nil
	}
	return err
}

// footprint is what Quarry takes: on disk, and in memory with no volume and
// with a thousand.
func (b *bench) footprint(ctx context.Context, s *Section) error {
	const volumes = 1000
	const mebibyte = 1 << 20
	t := s.table("", "MiB")
	for name, path := range map[string]string{"image, compressed layers": b.Image, "binary": filepath.Join(b.Repository,
		"bin/quarry")} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		t.Row(name, float64(info.Size())/mebibyte)
	}
	resident := func(when string) error {
		if err := b.quiet(ctx); err != nil {
			return err
		}
		usage, err := b.usage()
		if err != nil {
			return err
		}
		t.Row("agent, "+when, float64(usage["agent"].Resident)/mebibyte)
		t.Row("controllers, all replicas, "+when, float64(usage["controller"].Resident)/mebibyte)
		return nil
	}
	if err := resident("before"); err != nil {
		return err
	}
	l := &life{}
	if err := b.begin(ctx, l); err != nil {
		return err
	}
	names := b.names("footprint", volumes)
	if _, _, err := b.claims.Bind(ctx, wish("bench-directory", "4Mi", names)); err != nil {
		return err
	}
	if err := b.end(ctx, l, volumes); err != nil {
		return err
	}
	if err := resident("with a thousand directories"); err != nil {
		return err
	}
	s.note("The agent's CPU for each volume made: %.1f ms; the controllers': %.1f ms; the API server's: %.1f ms.",
		l.CPU["agent"], l.CPU["controller"], l.CPU["API server"])
	_, _, err := b.claims.Delete(ctx, names)
	s.Details["cpu"] = l.CPU
	return err
}

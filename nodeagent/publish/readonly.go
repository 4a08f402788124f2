package publish

import (
	"context"
	"errors"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// readOnlyDevices are the read-only devices over a Block volume's device; none
// where the volume is not up.
func (p *Publisher) readOnlyDevices(ctx context.Context, id string) ([]loop.Device, error) {
	dev, err := p.Store.Device(ctx, id)
	if err != nil {
		return nil, translate.WithReason(err)
	}

	devices, err := loop.ReadOnlyOver(dev)
	if err != nil {
		return nil, translate.Errorf(v1alpha1.ReasonFailed,
			"find the read-only devices of volume %s: %w", id, err)
	}

	return devices, nil
}

// sweep takes the volume's read-only devices away that are published nowhere
// any more.
func (p *Publisher) sweep(ctx context.Context, id string) error {
	v, err := p.Store.Get(id)
	if err != nil || v.VolumeMode != record.ModeBlock {
		return nil
	}

	devices, err := p.readOnlyDevices(ctx, id)
	if err != nil {
		return nil // not up: what is left goes at the next start
	}

	for _, ro := range devices {
		if err := p.detachUnused(ctx, ro); err != nil {
			return err
		}
	}

	return nil
}

// Sweep takes away every read-only device of the store's volumes that is
// published nowhere: what a crash left between making one and binding it. It is
// called at the program's start, once the volumes are up and before anything is
// published.
func (p *Publisher) Sweep(ctx context.Context) error {
	var errs []error
	for _, v := range p.Store.List() {
		errs = append(errs, p.sweep(ctx, v.ID))
	}
	return errors.Join(errs...)
}

func (p *Publisher) detachUnused(ctx context.Context, ro loop.Device) error {
	paths, err := deviceBoundAt(ro)
	if err != nil {
		return err
	}
	if len(paths) > 0 {
		return loop.Pin(ro) // a process before this one published it
	}

	err = loop.DetachReadOnly(ctx, ro)
	if _, busy := errors.AsType[*loop.BusyError](err); busy {
		return translate.Errorf(v1alpha1.ReasonTargetBusy,
			"a device that was published read-only is still in use: %w", err)
	}
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "take a read-only device away: %w", err)
	}

	return nil
}

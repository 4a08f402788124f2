package rescue

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// DefaultPatience is how long an agent, or the binder, is waited for.
const DefaultPatience = 2 * time.Minute

// Rescuer works on a cluster. Client reads live: it must not be one with a
// cache.
type Rescuer struct {
	Client client.WithWatch
	// Say is told each thing that was done, in one line. May be nil.
	Say func(format string, args ...any)
	// Patience bounds each wait for an agent or the binder; 0: DefaultPatience.
	Patience time.Duration
}

func (r *Rescuer) say(format string, args ...any) {
	if r.Say != nil {
		r.Say(format, args...)
	}
}

func (r *Rescuer) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	wait := r.Patience
	if wait <= 0 {
		wait = DefaultPatience
	}
	return context.WithTimeout(ctx, wait)
}

// get reads an object; nil, nil if it does not exist.
func get[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r *Rescuer, key client.ObjectKey) (P, error) {
	o := P(new(T))
	err := r.Client.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %T %s: %w", o, key.String(), err)
	}

	return o, nil
}

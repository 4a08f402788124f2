package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/keylock"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// The claims of one pod are provisioned one by one, by as many calls, but they
// are of use only together: the scheduler decided for the node once, for all of
// them. So each Volume names all claims of its group, and the first one that
// finds all of them here promises space to all of them in one step, or to none.

// groupPatience is how long a volume waits for others of its group. What has
// not come by then is of a pod that cannot be scheduled, or of a claim that
// cannot be served, and may never come.
const groupPatience = 5 * time.Second

// waitingError says that other members of a volume's group have no Volume
// object yet.
type waitingError struct{ have, want int }

func (e *waitingError) Error() string {
	return fmt.Sprintf("%d of the %d volumes of the same pod are here; they are admitted together",
		e.have, e.want)
}

// admit promises space to the volume, and to all of its group with it.
func (a *Agent) admit(ctx context.Context, v *v1alpha1.Volume) (*store.Admission, error) {
	group := v.Name
	if v.Spec.Admission != nil {
		group = "group " + v.Spec.Admission.Name
	}

	unlock, err := a.groups.locks.Lock(ctx, group)
	if err != nil {
		return nil, err
	}
	defer unlock()

	if adm := a.groups.get(v.Name); adm != nil {
		return adm, nil
	}

	members, err := a.members(ctx, v)
	if err != nil {
		return nil, err
	}

	var requests []store.Request
	for _, m := range members {
		if a.groups.get(m.Name) != nil || m.Name != v.Name && a.there(m.Name) {
			continue // promised, or made, before this one came
		}

		r, err := translate.RequestOf(m)
		if err != nil {
			return nil, a.refuseOthers(ctx, v, members, err)
		}

		requests = append(requests, r)
	}

	admitted, err := a.store.Admit(ctx, requests...)
	if err != nil {
		return nil, a.refuseOthers(ctx, v, members, err)
	}

	a.groups.put(requests, admitted)
	return a.groups.get(v.Name), nil
}

// members returns the Volumes of the volume's group that are here, its own
// first. As long as others may still come within [groupPatience] that is an
// error. Those that were refused, or are to be removed, do not count.
func (a *Agent) members(ctx context.Context, v *v1alpha1.Volume) ([]*v1alpha1.Volume, error) {
	members := []*v1alpha1.Volume{v}
	if v.Spec.Admission == nil || len(v.Spec.Admission.Claims) < 2 || v.Spec.Claim == nil {
		return members, nil
	}

	list, err := a.ofClaims(ctx, v.Spec.Admission.Claims)
	if err != nil {
		return nil, err
	}

	byClaim := map[types.UID]*v1alpha1.Volume{}
	for i := range list.Items {
		m := &list.Items[i]
		if m.Spec.Claim == nil || m.Spec.DesiredState != v1alpha1.DesiredPresent ||
			m.DeletionTimestamp != nil || m.Status.Phase == v1alpha1.VolumeRefused {
			continue
		}

		byClaim[m.Spec.Claim.UID] = m
	}

	have := 1
	for _, uid := range v.Spec.Admission.Claims {
		m := byClaim[uid]
		if uid == v.Spec.Claim.UID {
			continue
		}
		if m == nil {
			continue
		}

		have++
		members = append(members, m)
	}

	if have < len(v.Spec.Admission.Claims) {
		if left := a.groups.wait(v, time.Now()); left > 0 {
			a.queue.AddAfter(v.Name, left)
		} else {
			return members, nil
		}

		return nil, &waitingError{have: have, want: len(v.Spec.Admission.Claims)}
	}

	return members, nil
}

// there reports whether a volume has been made.
func (a *Agent) there(id string) bool {
	_, err := a.store.Get(id)
	return err == nil
}

// indexClaim is the cache's index of Volumes by the UID of their claim.
const indexClaim = "claim"

func indexOfClaim(o client.Object) []string {
	if v, ok := o.(*v1alpha1.Volume); ok && v.Spec.Claim != nil {
		return []string{string(v.Spec.Claim.UID)}
	}
	return nil
}

// ofClaims returns the node's Volumes of some claims.
func (a *Agent) ofClaims(ctx context.Context, claims []types.UID) (v1alpha1.VolumeList, error) {
	var all v1alpha1.VolumeList
	for _, uid := range claims {
		var some v1alpha1.VolumeList
		if err := a.client.List(ctx, &some,
			client.MatchingFields{indexClaim: string(uid)}); err != nil {
			return all, fmt.Errorf("list the volumes of claim %s: %w", uid, err)
		}

		all.Items = append(all.Items, some.Items...)
	}

	return all, nil
}

// refuseOthers tells the other members of the group that the group was refused,
// so that none of them is made.
func (a *Agent) refuseOthers(ctx context.Context, v *v1alpha1.Volume, members []*v1alpha1.Volume,
	cause error) error {
	if _, refused := store.Reason(cause); !refused || len(members) == 1 {
		return cause
	}

	a.pools.flush(ctx)
	for _, m := range members {
		if m.Name == v.Name {
			continue
		}
		_, err := a.store.Find(ctx, m.Name)
		missing, _ := errors.AsType[*store.NotFoundError](err)
		if err == nil || a.away(m, missing) != nil {
			continue // made already, or maybe so, by an earlier admission of the group
		}

		a.groups.cancel(m.Name)
		status := m.Status.DeepCopy()
		status.ObservedGeneration = m.Generation
		group := &store.GroupError{Err: cause}
		translate.SetReady(status, v1alpha1.VolumeRefused, v1alpha1.ReasonGroupRefused,
			group.Error())

		if err := a.writeStatus(ctx, m, status); err != nil {
			return err // all of it is tried again
		}
	}

	return cause
}

func (g *groups) get(id string) *store.Admission {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.admitted[id]
}

func (g *groups) put(requests []store.Request, admitted []*store.Admission) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range requests {
		g.admitted[requests[i].ID] = admitted[i]
		delete(g.waiting, requests[i].ID)
	}
}

// done forgets an admission that Create has used up.
func (g *groups) done(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.admitted, id)
}

// cancel takes back what was promised to a volume that will not be made.
func (g *groups) cancel(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if adm := g.admitted[id]; adm != nil {
		adm.Cancel()
	}
	delete(g.admitted, id)
	delete(g.waiting, id)
}

// wait notes that a volume waits for the other members of its group, and
// returns how much longer it does.
func (g *groups) wait(v *v1alpha1.Volume, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.waiting == nil {
		g.waiting = map[string]waiting{}
	}

	w, waits := g.waiting[v.Name]
	if !waits || w.group != v.Spec.Admission.Name {
		w = waiting{v.Spec.Admission.Name, now}
		g.waiting[v.Name] = w
	}

	return groupPatience - now.Sub(w.since)
}

// waitingFor returns the volumes that wait for others of the group v is in.
func (g *groups) waitingFor(v *v1alpha1.Volume) []string {
	if v.Spec.Admission == nil {
		return nil
	}

	g.mu.Lock()
	defer g.mu.Unlock()

	var names []string
	for name, w := range g.waiting {
		if w.group == v.Spec.Admission.Name && name != v.Name {
			names = append(names, name)
		}
	}

	slices.Sort(names)
	return names
}

// groups holds what is known of volumes that are admitted together.
type groups struct {
	locks keylock.Set

	mu       sync.Mutex
	admitted map[string]*store.Admission // by volume: promised, and not made yet
	waiting  map[string]waiting          // by volume
}

// waiting is the group whose other members a volume waits for, and since when.
type waiting struct {
	group string
	since time.Time
}

package provisioner

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// tryingInVain is a waiting room that counts how often it woke its one claim,
// which is tried in vain each time.
func tryingInVain(t *testing.T, reason string) (r *waitingRoom, woken *int) {
	woken = new(int)
	r = newWaitingRoom(func(any) {}, func(int) {})
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", UID: "u"}}
	w := waiter{node: "n", class: "c", size: 1 << 30, reason: reason}
	r.claimHandler = cache.ResourceEventHandlerFuncs{UpdateFunc: func(any, any) {
		*woken++
		r.addClaim(claim, w, "")
	}}
	r.addClaim(claim, w, "")
	t.Cleanup(func() { r.removeClaim("u") })
	return r, woken
}

func poolWith(size string) *v1alpha1.Pool {
	p := &v1alpha1.Pool{Spec: v1alpha1.PoolSpec{NodeName: "n"}}
	p.Status.MaximumVolumeSize = new(resource.MustParse(size))
	p.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
	return p
}

// A pool whose room comes and goes wakes what waits for room: at once, and then
// less and less often.
func TestWakingInVainGetsRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, woken := tryingInVain(t, v1alpha1.ReasonInsufficientCapacity)
		breathe := func() { r.poolChanged(poolWith("0"), poolWith("2Gi")) }
		breathe()
		require.Equal(t, 1, *woken)
		for range 3000 { // five minutes
			breathe()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		require.Less(t, *woken, 15)
		require.Greater(t, *woken, 5)
		had := *woken
		time.Sleep(time.Hour)
		breathe()
		require.LessOrEqual(t, had+1, *woken, "at once again")
		r.removeClaim("u")
	})
}

// What is wrong with a class is not mended by a pool or a node.
func TestWakingByWhatIsWrong(t *testing.T) {
	for reason, by := range map[string]map[string]bool{
		v1alpha1.ReasonInvalidParameter:     {"class": true},
		v1alpha1.ReasonUnsupportedClaim:     {"class": true, "node": true},
		v1alpha1.ReasonAgentNotReady:        {"class": true, "node": true},
		v1alpha1.ReasonInsufficientCapacity: {"class": true, "node": true, "pool": true},
		"FromTomorrow":                      {"class": true, "node": true, "pool": true},
	} {
		for what, happens := range map[string]func(*waitingRoom){
			"class": func(r *waitingRoom) { r.classChanged("c") },
			"node":  func(r *waitingRoom) { r.nodeChanged("n") },
			"pool":  func(r *waitingRoom) { r.poolChanged(nil, poolWith("2Gi")) },
		} {
			r, woken := tryingInVain(t, reason)
			happens(r)
			require.Equal(t, by[what], *woken > 0, "%s by %s", reason, what)
		}
	}
}

// What happens on one node, to one class or to one record goes through those
// that it concerns, and not through all that wait in the cluster.
func TestWakingLooksAtThoseConcerned(t *testing.T) {
	const nodes = 50
	r := newWaitingRoom(func(any) {}, func(int) {})
	var woken []string
	handler := cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, now any) {
		woken = append(woken, now.(metav1.Object).GetName())
	}}
	r.claimHandler, r.volumeHandler = handler, handler
	add := func(name, node string) {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
		r.addClaim(claim, waiter{node: node, class: "of-" + node, size: 1 << 30}, "")
	}
	for i := range nodes {
		node := fmt.Sprint("n", i)
		add("claim-"+node, node)
		r.addVolume(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + node}}, node)
	}
	add("anywhere", "")

	pool := poolWith("2Gi")
	pool.Spec.NodeName = "n7"
	record := &v1alpha1.Volume{}
	record.Spec.DesiredState, record.Spec.NodeName = v1alpha1.DesiredPresent, "n9"
	record.Spec.Claim = &v1alpha1.ClaimReference{UID: "claim-n9"}
	record.Status.Conditions = poolWith("1Gi").Status.Conditions
	gone := &v1alpha1.Volume{}
	gone.Labels = map[string]string{v1alpha1.LabelPVName: "pv-n3"}
	gone.Spec.DesiredState, gone.Status.Phase = v1alpha1.DesiredDeleted, v1alpha1.VolumeDeleted
	for _, c := range []struct {
		what    string
		happens func()
		wakes   []string
	}{
		{"a node", func() { r.nodeChanged("n4") }, []string{"claim-n4", "anywhere", "pv-n4"}},
		{"a pool", func() { r.poolChanged(nil, pool) }, []string{"claim-n7", "anywhere"}},
		{"a class", func() { r.classChanged("of-n5") }, []string{"claim-n5"}},
		{"a volume", func() { r.volumeChanged(record) }, []string{"claim-n9"}},
		{"a volume that is gone", func() { r.volumeChanged(gone) }, []string{"pv-n3"}},
		{"a node where nobody waits", func() { r.nodeChanged("n99") }, []string{"anywhere"}},
	} {
		woken, r.claims.looked, r.volumes.looked = nil, 0, 0
		for _, w := range r.claims.all { // nobody rests from the event before
			w.rested()
			w.woken, w.later = 0, nil
			r.claims.put(string(w.object.(*corev1.PersistentVolumeClaim).UID), w)
		}
		c.happens()
		require.ElementsMatch(t, c.wakes, woken, c.what)
		require.Equal(t, len(c.wakes), r.claims.looked+r.volumes.looked, c.what)
	}

	// A claim that is given another node is looked for there, and one that goes
	// nowhere.
	add("claim-n1", "n2")
	r.removeClaim("claim-n3")
	woken = nil
	r.nodeChanged("n1")
	r.nodeChanged("n3")
	require.NotContains(t, woken, "claim-n1")
	require.NotContains(t, woken, "claim-n3")
	r.nodeChanged("n2")
	require.Contains(t, woken, "claim-n1")
	require.Len(t, r.claims.byNode, nodes-2+1, "no node without waiters is kept")
}

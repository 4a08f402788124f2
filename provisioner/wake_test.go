package provisioner

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// tryingInVain is a waiting room that counts how often it woke its one claim, which is tried in vain each time.
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

// A pool whose room comes and goes wakes what waits for room: at once, and then less and less often.
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
		ReasonInvalidParameter:              {"class": true},
		ReasonUnsupportedClaim:              {"class": true, "node": true},
		ReasonAgentNotReady:                 {"class": true, "node": true},
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

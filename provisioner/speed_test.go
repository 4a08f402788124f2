package provisioner

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/provisioner/internal/controlplane"
)

// BenchmarkBind is the time from creating a claim to its being Bound, with an
// agent that does no work: everything that this package and Kubernetes add to
// the agent's own time.
func BenchmarkBind(b *testing.B) {
	cp := controlplane.Start(b, "../charts/quarry/crds")
	cp.Kubectl(b, "apply", "-f", "testdata/rbac.yaml")
	ctrllog.SetLogger(logr.Discard())
	k := newCluster(b, cp)
	node := k.node("a")
	k.agent(node, "1000Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	warm := k.claim("warm", class, "1Gi", node)
	k.bound(warm.Name)
	var worst time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		claim := k.claim(fmt.Sprintf("data-%d", i), class, "1Gi", node)
		w, err := k.Watch(b.Context(), &corev1.PersistentVolumeClaimList{}, client.InNamespace(k.namespace),
			client.MatchingFields{"metadata.name": claim.Name})
		require.NoError(b, err)
		for e := range w.ResultChan() {
			if c, ok := e.Object.(*corev1.PersistentVolumeClaim); ok && c.Status.Phase == corev1.ClaimBound {
				break
			}
		}
		w.Stop()
		worst = max(worst, time.Since(start))
	}
	b.ReportMetric(float64(worst.Milliseconds()), "ms-worst")
}

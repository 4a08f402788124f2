package provisioner

import (
	"bufio"
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/rest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/internal/controlplane"
)

// word is one kind of request, as the API server counts them.
type word struct{ verb, resource, subresource string }

func (w word) String() string {
	if w.subresource == "" {
		return w.verb + " " + w.resource
	}
	return w.verb + " " + w.resource + "/" + w.subresource
}

var requestTotal = regexp.MustCompile(`^apiserver_request_total\{(.*)\} ([0-9.e+]+)$`)

// words counts the requests that the API server has answered, whatever the
// answer was.
func (k *cluster) words() map[word]int {
	k.t.Helper()
	config := k.cp.Config(controlplane.Admin)
	http, err := rest.HTTPClientFor(config)
	require.NoError(k.t, err)
	answer, err := http.Get(config.Host + "/metrics")
	require.NoError(k.t, err)
	defer func() { require.NoError(k.t, answer.Body.Close()) }()
	count := map[word]int{}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := requestTotal.FindSubmatch(lines.Bytes())
		if m == nil {
			continue
		}
		label := func(name string) string {
			_, after, _ := bytes.Cut(m[1], []byte(name+`="`))
			value, _, _ := bytes.Cut(after, []byte(`"`))
			return string(value)
		}
		n, err := strconv.ParseFloat(string(m[2]), 64)
		require.NoError(k.t, err)
		count[word{label("verb"), label("resource"), label(",subresource")}] += int(n)
	}
	require.NoError(k.t, lines.Err())
	require.NotEmpty(k.t, count)
	return count
}

// since are the words that were said after an earlier count.
func (k *cluster) since(before map[word]int) map[word]int {
	k.t.Helper()
	now := k.words()
	for w, n := range before {
		if now[w] -= n; now[w] == 0 {
			delete(now, w)
		}
	}
	return now
}

// TestWords holds the number of writes that a volume costs the API server.
// Nothing is said twice, and nothing without news.
func TestWords(t *testing.T) {
	cp := controlplane.Start(t, "../charts/quarry/crds")
	cp.Kubectl(t, "apply", "-f", "testdata/rbac.yaml")
	ctrllog.SetLogger(logr.Discard())
	k := newCluster(t, cp)
	node := k.node("a")
	k.agent(node, "1000Gi")
	class := k.class("wait", waitFirst, map[string]string{"backend": "loop", "fsType": "ext4"})
	k.start()
	const claims = 60
	// A node's capacity is written once a second at most, and not at all for
	// what is less than a percent of it.
	patient := func(said map[word]int, began time.Time) {
		seconds := int(time.Since(began)/capacityEvery) + 1
		require.LessOrEqual(t, said[word{"PATCH", "csistoragecapacities", ""}],
			min(seconds, claims*capacityStep/1000+1), "%v", said)
		require.Zero(t, said[word{"POST", "csistoragecapacities", ""}])
	}
	made := map[word]int{{"POST", "volumes", ""}: claims, {"PATCH", "volumes", "status"}: claims}
	gone := map[word]int{{"PATCH", "volumes", ""}: claims, {"PATCH", "volumes", "status"}: claims,
		{"DELETE", "volumes", ""}: claims}

	k.until("capacity is published", func() string {
		var list storagev1.CSIStorageCapacityList
		require.NoError(t, k.List(t.Context(), &list))
		return differs(len(list.Items), 1)
	})
	before, began := k.words(), time.Now()
	for i := range claims {
		k.claim(fmt.Sprintf("data-%d", i), class, "1Gi", node)
	}
	var bound []*corev1.PersistentVolumeClaim
	for i := range claims {
		claim, _ := k.bound(fmt.Sprintf("data-%d", i))
		bound = append(bound, claim)
	}
	said := k.since(before)
	require.Equal(t, made, ours(said))
	patient(said, began)

	before, began = k.words(), time.Now()
	for _, claim := range bound {
		require.NoError(t, k.Delete(t.Context(), claim))
	}
	k.until("the volumes are gone", func() string {
		var pvs corev1.PersistentVolumeList
		var volumes v1alpha1.VolumeList
		require.NoError(t, k.List(t.Context(), &pvs))
		require.NoError(t, k.List(t.Context(), &volumes))
		return differs(len(pvs.Items)+len(volumes.Items), 0)
	})
	said = k.since(before)
	require.Equal(t, gone, ours(said))
	patient(said, began)
	require.Equal(t, claims, said[word{"DELETE", "persistentvolumes", ""}], "the library is told once")
}

// ours are the writes to Volumes among words.
func ours(said map[word]int) map[word]int {
	out := map[word]int{}
	for w, n := range said {
		if w.resource == "volumes" && w.verb != "GET" && w.verb != "LIST" && w.verb != "WATCH" {
			out[w] = n
		}
	}
	return out
}

package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// modelSteps is how many operations one run of the model test does.
const modelSteps = 20

// modelled is what a volume should be: the simple model that the store is
// compared with.
type modelled struct {
	size  int64
	text  string
	place string // "volume", "trash" or ""
}

// TestModel does operations in any order, with crashes, restarts and reboots
// between and within them, and compares what is there with a model.
// QUARRY_MODEL_SEED repeats a run.
func TestModel(t *testing.T) {
	seeds := map[string]uint64{"fixed": 1, "random": rand.Uint64()}
	if text := os.Getenv("QUARRY_MODEL_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		seeds["random"] = seed
	}
	for name, seed := range seeds {
		for _, k := range []poolKind{onExt4, onBtrfs, onExt4Prj, onXFSPrj} {
			t.Run(name+"/"+k.name, func(t *testing.T) {
				t.Parallel()
				m := &model{n: newNode(t, k.make(t, 2*gib)), rand: rand.New(rand.NewPCG(seed, 0)),
					want: map[string]*modelled{}}
				t.Logf("QUARRY_MODEL_SEED=%d", seed)
				for i := range modelSteps {
					m.step(t, i)
					m.compare(t)
				}
			})
		}
	}
}

type model struct {
	n    *node
	rand *rand.Rand
	want map[string]*modelled
}

// request is always the same for an id.
func (m *model) request(id string) Request {
	kinds := []Request{
		{VolumeMode: record.ModeBlock, SizeBytes: 16 * mib},
		{Backend: "auto", SizeBytes: 32 * mib},
		{Backend: record.BackendDirectory, Enforcement: record.EnforcementNone, SizeBytes: 8 * mib},
		{Backend: record.BackendLoop, FSType: "ext4", Allocation: record.AllocationThin, SizeBytes: 24 * mib},
	}
	r := kinds[int(id[len(id)-1]-'0')%len(kinds)]
	r.ID = id
	r.Origin = record.Origin{ClaimNamespace: "ns-" + id, ClaimName: "data"}
	return r
}

func (m *model) step(t *testing.T, i int) {
	id := fmt.Sprintf("pvc-%d", m.rand.IntN(6))
	w := m.want[id]
	if w == nil {
		w = &modelled{}
		m.want[id] = w
	}
	r := m.request(id)
	op, size := m.choose(w, r)
	at := ""
	switch m.rand.IntN(4) {
	case 0: // in this process
		require.NoError(t, do(t.Context(), m.n.store, op, r, size), "step %d: %s %s", i, op, id)
	case 1: // a step fails, and it is done again
		m.failing(op, r, size)
		require.NoError(t, do(t.Context(), m.n.store, op, r, size), "step %d: %s %s again", i, op, id)
	default: // the process is killed, perhaps the machine loses its memory, and it is done again
		at = doom{Pools: []string{m.n.pools[0].Path}, Devices: m.n.devices, Op: op, Request: r, Size: size,
			Step: 1 + m.rand.IntN(20)}.run(t)
		if m.rand.IntN(3) == 0 {
			m.n.reboot()
		}
		m.n.start()
		require.NoError(t, do(t.Context(), m.n.store, op, r, size), "step %d: %s %s again, after it was "+
			"killed before %q", i, op, id, at)
	}
	t.Logf("step %d: %s %s %s", i, op, id, at)
	m.apply(t, op, r, size, w)
}

// choose picks an operation that makes sense for what the model has.
func (m *model) choose(w *modelled, r Request) (op string, size int64) {
	switch {
	case w.place == "volume" && m.rand.IntN(3) == 0 && (canResizeExt4() || r.VolumeMode == record.ModeBlock ||
		r.Backend == record.BackendDirectory):
		return opGrow, w.size + int64(m.rand.IntN(3))*4*mib
	case w.place == "volume" && m.rand.IntN(3) == 0:
		return opPurge, 0
	case w.place == "volume" && m.rand.IntN(3) == 0:
		return opStart, 0
	case w.place == "volume":
		return opDelete, 0
	case w.place == "trash" && m.rand.IntN(2) == 0:
		return opPurge, 0
	case w.place == "trash":
		return opRestore, 0
	}
	return opCreate, 0
}

// apply does to the model what the operation did, and writes something to what
// is there.
func (m *model) apply(t *testing.T, op string, r Request, size int64, w *modelled) {
	switch op {
	case opCreate:
		*w = modelled{size: r.SizeBytes, place: "volume"}
	case opGrow:
		w.size = size
	case opDelete:
		w.place = "trash"
	case opRestore:
		w.place = "volume"
	case opPurge:
		*w = modelled{}
	}
	if w.place == "volume" && (op == opCreate || m.rand.IntN(2) == 0) {
		v, err := m.n.store.Get(r.ID)
		require.NoError(t, err)
		w.text = fmt.Sprintf("text-%d", m.rand.Uint32())
		mark(t, v, w.text)
	}
}

func (m *model) failing(op string, r Request, size int64) {
	fail := 0
	m.n.start(func(o *Options) {
		o.Fault = func(string) error {
			if fail--; fail == 0 {
				return errors.New("injected")
			}
			return nil
		}
	})
	fail = 1 + m.rand.IntN(15)
	_ = do(m.n.t.Context(), m.n.store, op, r, size) // it may fail or not
	fail = 0
}

func (m *model) compare(t *testing.T) {
	t.Helper()
	m.n.check()
	trash := map[string]bool{}
	for _, e := range m.n.store.Trash() {
		trash[e.Volume.ID] = true
	}
	for id, w := range m.want {
		v, err := m.n.store.Get(id)
		if w.place != "volume" {
			var notFound *NotFoundError
			require.ErrorAs(t, err, &notFound, id)
			require.Equal(t, w.place == "trash", trash[id], id)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, v.Unavailable, id)
		require.Equal(t, w.size, v.SizeBytes, id)
		require.Equal(t, w.text, marked(t, v), id)
	}
}

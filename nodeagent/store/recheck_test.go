package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func TestRecheckPutsBackWhatIsNotInForce(t *testing.T) {
	for _, k := range quotaPools {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, 512*mib)
			n := newNode(t, path)
			s := n.start()
			v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
			pool, err := os.Open(path)
			require.NoError(t, err)
			defer pool.Close()
			require.NoError(t, s.Recheck(t.Context(), v.ID))

			// An administrator lifts the limit.
			if k.quota == record.QuotaBtrfs {
				require.NoError(t, btrfs.SetLimit(pool, uint32(v.QuotaID), 0))
			} else {
				require.NoError(t, quota.Clear(pool, uint32(v.QuotaID)))
			}
			lost := &backend.EnforcementError{}
			require.ErrorAs(t, s.Recheck(t.Context(), v.ID), &lost)
			require.Equal(t, v1alpha1.ReasonQuotaLost, lost.Reason)
			told, err := s.Get(v.ID)
			require.NoError(t, err)
			require.ErrorAs(t, told.NotEnforced, &lost)
			require.NoError(t, told.Unavailable, "its data is there all the same")
			checkLimit(t, k, v)
			require.NoError(t, s.Recheck(t.Context(), v.ID))
			told, err = s.Get(v.ID)
			require.NoError(t, err)
			require.NoError(t, told.NotEnforced)

			if k.quota != record.QuotaProject {
				return
			}
			// An administrator lifts the limit of inodes only.
			few := n.mustCreate(Request{ID: "pvc-2", Backend: record.BackendDirectory, SizeBytes: 16 * mib,
				Inodes: 1000})
			require.NoError(t, quota.SetLimits(pool, uint32(few.QuotaID), quota.Limits{Bytes: 16 * mib}))
			require.ErrorAs(t, s.Recheck(t.Context(), few.ID), &lost)
			limits, _, err := quota.GetLimits(pool, uint32(few.QuotaID))
			require.NoError(t, err)
			require.EqualValues(t, 1000, limits.Inodes)
			require.NoError(t, s.Recheck(t.Context(), few.ID))

			// The owner of a file takes it out of the volume's project.
			stray := filepath.Join(v.Path, "stray")
			require.NoError(t, os.WriteFile(stray, []byte("free of charge"), 0o644))
			f, err := os.Open(stray)
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, quota.SetProject(f, 0, false))
			require.ErrorAs(t, s.Recheck(t.Context(), v.ID), &lost)
			require.Equal(t, v1alpha1.ReasonEscaped, lost.Reason)
			require.Contains(t, lost.Detail, "stray")
			id, _, err := quota.GetProject(f)
			require.NoError(t, err)
			require.EqualValues(t, v.QuotaID, id, "it counts again")
			require.NoError(t, s.Recheck(t.Context(), v.ID))
		})
	}
}

// TestFlagsComeBackAfterACrash ends the agent while a file is not immutable for
// the moment in which it is charged to its volume: it is immutable again once
// the next one has brought the volume up, or looks at it.
func TestFlagsComeBackAfterACrash(t *testing.T) {
	for _, k := range quotaPools {
		if k.quota != record.QuotaProject {
			continue
		}
		for _, step := range []string{"recheck: note flags", "recheck: flags off", "recheck: forget flags"} {
			t.Run(k.name+", "+step, func(t *testing.T) {
				n := newNode(t, k.make(t, 512*mib))
				v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
				file := filepath.Join(v.Path, "file")
				require.NoError(t, os.WriteFile(file, []byte("kept"), 0o644))
				f, err := os.Open(file)
				require.NoError(t, err)
				defer f.Close()
				require.NoError(t, quota.SetProject(f, 0, false))
				run(t, "chattr", "+i", file)
				t.Cleanup(func() { run(t, "chattr", "-i", file) })
				immutable := func() bool {
					flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
					require.NoError(t, err)
					return flags&fsImmutable != 0
				}
				died := errors.New("it died")
				met := false
				s := n.start(func(o *Options) {
					o.Fault = func(at string) error {
						if at == step {
							met = true
							return died
						}
						return nil
					}
				})
				err = s.Recheck(t.Context(), v.ID)
				if !met {
					t.Skip("the kernel lets an immutable file's project be changed")
				}
				require.ErrorIs(t, err, died)
				require.Equal(t, step != "recheck: flags off", immutable())

				n.start()
				require.True(t, immutable(), "it is as its owner made it")
				_ = n.store.Recheck(t.Context(), v.ID)
				require.True(t, immutable())
				id, _, err := quota.GetProject(f)
				require.NoError(t, err)
				require.EqualValues(t, v.QuotaID, id)
				require.NoFileExists(t, filepath.Join(n.pools[0].Path, v.ID, record.FlagsFile))
				run(t, "chattr", "-i", file)
				require.NoError(t, n.store.Recheck(t.Context(), v.ID))
				run(t, "chattr", "+i", file)
			})
		}
	}
}

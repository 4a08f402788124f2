package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// reasonOf is what a refusal says; "" where there is none.
func reasonOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	reason, refused := Reason(err)
	require.True(t, refused, "%v", err)
	return reason
}

// TestNormalize says which requests no pool could serve.
func TestNormalize(t *testing.T) {
	cases := []struct {
		name   string
		change func(*Request)
		reason string
	}{
		{"as little as may be asked", func(*Request) {}, ""},
		{"no size", func(r *Request) { r.SizeBytes = 0 }, v1alpha1.ReasonInvalidOptions},
		{"a negative size", func(r *Request) { r.SizeBytes = -mib }, v1alpha1.ReasonInvalidOptions},
		{"a size near overflow", func(r *Request) { r.SizeBytes = 1<<62 + 1 }, v1alpha1.ReasonInvalidOptions},
		{"too small", func(r *Request) { r.SizeBytes = minimumRaw - blockAlign }, v1alpha1.ReasonTooSmall},
		{"too small until it is rounded up", func(r *Request) { r.SizeBytes = minimumRaw - 1 }, ""},
		{"an unknown backend", func(r *Request) { r.Backend = "zfs" }, v1alpha1.ReasonInvalidOptions},
		{"an unknown enforcement", func(r *Request) { r.Enforcement = "Quota" }, v1alpha1.ReasonInvalidOptions},
		{"an unknown volumeMode", func(r *Request) { r.VolumeMode = "block" }, v1alpha1.ReasonInvalidOptions},
		{"an unknown allocation", func(r *Request) { r.Allocation = "sparse" }, v1alpha1.ReasonInvalidOptions},
		{"a mode with more than permissions", func(r *Request) { r.Mode = 0o10000 }, v1alpha1.ReasonInvalidOptions},
		{"no limit of its own on inodes", func(r *Request) { r.Inodes = UnlimitedInodes }, ""},
		{"negative inodes", func(r *Request) { r.Inodes = UnlimitedInodes - 1 }, v1alpha1.ReasonInvalidOptions},
		{"a directory as a block device", func(r *Request) {
			r.Backend, r.VolumeMode = record.BackendDirectory, record.ModeBlock
		}, v1alpha1.ReasonUnsupported},
		{"a strict directory", func(r *Request) {
			r.Backend, r.Enforcement = record.BackendDirectory, record.EnforcementStrict
		}, v1alpha1.ReasonUnsupported},
		{"a block device of any backend", func(r *Request) { r.VolumeMode = record.ModeBlock }, ""},
		{"made from a snapshot", func(r *Request) { r.Source = &record.Source{} }, v1alpha1.ReasonSourceNotFound},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := Request{ID: "v", SizeBytes: mib}
			c.change(&r)
			require.Equal(t, c.reason, reasonOf(t, r.normalize()))
		})
	}
}

// TestNormalizeFillsIn says what a request is that says nothing.
func TestNormalizeFillsIn(t *testing.T) {
	r := Request{ID: "v", SizeBytes: mib + 1}
	require.NoError(t, r.normalize())
	want := Request{
		ID: "v", SizeBytes: mib + blockAlign, Mode: DefaultMode,
		Backend: "auto", Enforcement: record.EnforcementQuota,
		VolumeMode: record.ModeFilesystem, Allocation: record.AllocationThick,
		Origin: r.Origin,
	}
	require.Equal(t, want, r)
	require.NoError(t, r.normalize())
	require.Equal(t, want, r, "a second call changes nothing")

	for _, id := range []string{"", "..", "a/b", strings.Repeat("x", 300)} {
		bad := Request{ID: id, SizeBytes: mib}
		require.Error(t, bad.normalize(), "%q", id)
	}
}

// TestNormalizeAdoption says what may be asked to be adopted.
func TestNormalizeAdoption(t *testing.T) {
	const dir, file = string(v1alpha1.AdoptDirectory), string(v1alpha1.AdoptFile)
	cases := []struct {
		name    string
		adopt   Adoption
		change  func(*Request)
		backend string
		reason  string
	}{
		{"a directory", Adoption{Path: "/srv/a"}, nil, record.BackendDirectory, ""},
		{"an image", Adoption{Path: "/srv/a", Type: file}, nil, record.BackendLoop, ""},
		{"an image as a block device", Adoption{Path: "/srv/a", Type: file}, func(r *Request) {
			r.VolumeMode = record.ModeBlock
		}, record.BackendLoop, ""},
		{"of no type that there is", Adoption{Path: "/srv/a", Type: "Socket"}, nil, "", v1alpha1.ReasonInvalidOptions},
		{"without a path", Adoption{}, nil, "", v1alpha1.ReasonNotAdoptable},
		{"of a relative path", Adoption{Path: "srv/a"}, nil, "", v1alpha1.ReasonNotAdoptable},
		{"of a path that leads up", Adoption{Path: "/srv/../a"}, nil, "", v1alpha1.ReasonNotAdoptable},
		{"of a path with a slash at its end", Adoption{Path: "/srv/a/"}, nil, "", v1alpha1.ReasonNotAdoptable},
		{"and made from a source", Adoption{Path: "/srv/a"}, func(r *Request) {
			r.Source = &record.Source{}
		}, "", v1alpha1.ReasonInvalidOptions},
		{"a directory as an image", Adoption{Path: "/srv/a", Type: dir}, func(r *Request) {
			r.Backend = record.BackendLoop
		}, "", v1alpha1.ReasonInvalidOptions},
		{"a directory as a block device", Adoption{Path: "/srv/a"}, func(r *Request) {
			r.VolumeMode = record.ModeBlock
		}, "", v1alpha1.ReasonNotAdoptable},
		{"a strict directory", Adoption{Path: "/srv/a"}, func(r *Request) {
			r.Enforcement = record.EnforcementStrict
		}, "", v1alpha1.ReasonNotAdoptable},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			asked := c.adopt
			r := Request{ID: "v", SizeBytes: mib, Adopt: &asked}
			if c.change != nil {
				c.change(&r)
			}
			require.Equal(t, c.reason, reasonOf(t, r.normalize()))
			require.Equal(t, c.adopt, asked, "the caller's is left as it was")
			if c.reason == "" {
				require.Equal(t, c.backend, r.Backend)
			}
		})
	}
}

// TestPlan says how each request is carved from each kind of pool.
func TestPlan(t *testing.T) {
	var (
		xfs   = disk.Features{Filesystem: "xfs", ProjectQuota: true}
		btrfs = disk.Features{Filesystem: "btrfs", SimpleQuota: true}
		plain = disk.Features{Filesystem: "ext4", NoQuotaBecause: "it was not switched on"}
		holes = disk.Features{Filesystem: "ext4", Unreserved: true}

		image     = plan{backend: record.BackendLoop, fstype: "ext4"}
		raw       = plan{backend: record.BackendLoop}
		byProject = plan{backend: record.BackendDirectory, quotaKind: record.QuotaProject}
		byGroup   = plan{backend: record.BackendDirectory, quotaKind: record.QuotaBtrfs}
		unlimited = plan{backend: record.BackendDirectory}
	)
	cases := []struct {
		name   string
		pool   disk.Features
		change func(*Request)
		want   plan
		reason string
	}{
		{name: "a directory where quotas are", pool: xfs, want: byProject},
		{name: "a directory on btrfs", pool: btrfs, want: byGroup},
		{name: "an image where no quotas are", pool: plain, want: image},
		{name: "a directory where no quotas are", pool: plain, change: func(r *Request) {
			r.Backend = record.BackendDirectory
		},
			reason: v1alpha1.ReasonUnsupported},
		{name: "a directory without a limit", pool: plain, change: func(r *Request) {
			r.Enforcement = record.EnforcementNone
		}, want: unlimited},
		{name: "without a limit although quotas are", pool: xfs, change: func(r *Request) {
			r.Enforcement = record.EnforcementNone
		}, want: unlimited},
		{name: "an image where it is asked for", pool: xfs, change: func(r *Request) {
			r.Backend = record.BackendLoop
		}, want: image},
		{name: "an image without enforcement", pool: xfs, change: func(r *Request) {
			r.Backend, r.Enforcement = record.BackendLoop, record.EnforcementNone
		}, want: image},
		{name: "an image where strict is asked for", pool: xfs, change: func(r *Request) {
			r.Enforcement = record.EnforcementStrict
		}, want: image},
		{name: "a block device", pool: xfs, change: func(r *Request) { r.VolumeMode = record.ModeBlock }, want: raw},
		{name: "a filesystem of its own", pool: xfs, change: func(r *Request) { r.FSType = "ext4" }, want: image},
		{name: "a filesystem, and a directory", pool: xfs, change: func(r *Request) {
			r.FSType, r.Backend = "xfs", record.BackendDirectory
		}, want: byProject},
		{name: "a filesystem that is none", pool: plain, change: func(r *Request) {
			r.FSType = "ntfs"
		}, reason: v1alpha1.ReasonInvalidOptions},
		{name: "an option that is none", pool: plain, change: func(r *Request) {
			r.MountOptions = []string{"uid=0"}
		}, reason: v1alpha1.ReasonInvalidOptions},
		{name: "too small for the filesystem", pool: plain, change: func(r *Request) {
			r.FSType, r.SizeBytes = "xfs", 16*mib
		},
			reason: v1alpha1.ReasonTooSmall},
		{name: "inodes in a directory", pool: xfs, change: func(r *Request) { r.Inodes = 100 }, want: byProject},
		{name: "inodes on btrfs are an image's", pool: btrfs, change: func(r *Request) { r.Inodes = 100 }, want: image},
		{name: "inodes in a directory on btrfs", pool: btrfs, change: func(r *Request) {
			r.Inodes, r.Backend = 100, record.BackendDirectory
		},
			reason: v1alpha1.ReasonUnsupported},
		{name: "any number of inodes on btrfs", pool: btrfs, change: func(r *Request) {
			r.Inodes = UnlimitedInodes
		}, want: byGroup},
		{name: "scrub zero on btrfs is an image's", pool: btrfs, change: func(r *Request) {
			r.Origin.Deletion.Scrub = scrubZero
		}, want: image},
		{name: "scrub zero in a directory on btrfs", pool: btrfs, change: func(r *Request) {
			r.Origin.Deletion.Scrub, r.Backend = scrubZero, record.BackendDirectory
		}, reason: v1alpha1.ReasonUnsupported},
		{name: "scrub zero elsewhere", pool: xfs, change: func(r *Request) {
			r.Origin.Deletion.Scrub = scrubZero
		}, want: byProject},
		{name: "scrub discard on btrfs", pool: btrfs, change: func(r *Request) {
			r.Origin.Deletion.Scrub = scrubDiscard
		}, want: byGroup},
		{name: "a thick image where nothing is reserved", pool: holes, reason: v1alpha1.ReasonUnsupported},
		{name: "a thin image where nothing is reserved", pool: holes, change: func(r *Request) {
			r.Allocation = record.AllocationThin
		}, want: image},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := Request{ID: "v", SizeBytes: gib}
			if c.change != nil {
				c.change(&r)
			}
			require.NoError(t, r.normalize())
			got, err := planFor(&r, c.pool, "ext4")
			if c.reason != "" {
				require.Equal(t, c.reason, reasonOf(t, err))
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

// TestPlanTellsWhatIsMissing quotes what the pool's filesystem was probed for.
func TestPlanTellsWhatIsMissing(t *testing.T) {
	r := Request{ID: "v", SizeBytes: gib, Backend: record.BackendDirectory}
	require.NoError(t, r.normalize())
	_, err := planFor(&r, disk.Features{Filesystem: "nilfs2", NoQuotaBecause: "it has no quotas"}, "ext4")
	var refused *RefusedError
	require.True(t, errors.As(err, &refused))
	require.Contains(t, refused.Message, "nilfs2")
	require.Contains(t, refused.Message, "it has no quotas")
}

// TestPoolsThatAreWanted says which pools a request may be carved from.
func TestPoolsThatAreWanted(t *testing.T) {
	fast := &pool{cfg: config.Pool{Name: "fast", Labels: map[string]string{"disk": "ssd"}}}
	slow := &pool{cfg: config.Pool{Name: "slow", Labels: map[string]string{"disk": "hdd"}}}
	selector := func(text string) labels.Selector {
		s, err := labels.Parse(text)
		require.NoError(t, err)
		return s
	}
	cases := []struct {
		name       string
		request    Request
		fast, slow bool
	}{
		{"any", Request{}, true, true},
		{"by name", Request{Pool: "slow"}, false, true},
		{"by a name that none has", Request{Pool: "none"}, false, false},
		{"by label", Request{PoolSelector: selector("disk=ssd")}, true, false},
		{"by a label that both have", Request{PoolSelector: selector("disk")}, true, true},
		{"by the pool's own label", Request{PoolSelector: selector(v1alpha1.LabelPool + "=fast")}, true, false},
		{"by the node's", Request{PoolSelector: selector(v1alpha1.LabelNode + "=here")}, true, true},
		{"by another node's", Request{PoolSelector: selector(v1alpha1.LabelNode + "=there")}, false, false},
		{"a name counts more than labels", Request{Pool: "slow", PoolSelector: selector("disk=ssd")}, false, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.fast, c.request.wants(fast, "here"))
			require.Equal(t, c.slow, c.request.wants(slow, "here"))
		})
	}
}

// TestChoice says which of two pools is taken.
func TestChoice(t *testing.T) {
	cases := []struct {
		name      string
		this, not choice
	}{
		{"the one with more room", choice{room: 2}, choice{room: 1}},
		{"fewer volumes of its group count more than room", choice{alike: 1, room: 1}, choice{alike: 2, room: 100}},
		{"among as many the one with more room", choice{alike: 1, room: 2}, choice{alike: 1, room: 1}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			require.True(t, c.this.before(c.not))
			require.False(t, c.not.before(c.this))
		})
	}
	require.False(t, choice{alike: 1, room: 1}.before(choice{alike: 1, room: 1}), "of two alike the first one stays")
}

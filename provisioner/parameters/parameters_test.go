package parameters

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

//go:generate go test -run TestReferenceIsCurrent . -update

var update = flag.Bool("update", false, "write generated files instead of comparing them")

func TestReferenceIsCurrent(t *testing.T) {
	const file = "../../docs/reference/parameters.md"
	if *update {
		require.NoError(t, os.MkdirAll("../../docs/reference", 0o755))
		require.NoError(t, os.WriteFile(file, []byte(Reference()), 0o644))
	}
	have, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, Reference(), string(have), "run `go generate ./provisioner/parameters`")
}

func TestParse(t *testing.T) {
	p, err := Parse(map[string]string{
		"backend": "loop", "enforcement": "strict", "allocation": "thin", "poolSelector": "disk in (ssd,nvme),!cold",
		"csi.storage.k8s.io/fstype": "xfs", "csi.storage.k8s.io/provisioner-secret-name": "x",
		"mkfsOptions": " -m  reflink=1 ",
		"owner":       "1000", "group": "4294967294", "mode": "0770", "inodes": "5000",
		"onDelete": "trash", "scrub": "zero", "onNodeLoss": "afterDelay",
	})
	require.NoError(t, err)
	require.Equal(t, v1alpha1.BackendLoop, p.Backend)
	require.Equal(t, "xfs", p.FSType)
	require.Equal(t, []string{"-m", "reflink=1"}, p.MkfsOptions)
	require.Equal(t, int64(4294967294), *p.Group)
	require.Equal(t, 72*time.Hour, p.TrashRetention)
	require.Len(t, p.PoolSelector.MatchExpressions, 2)

	defaults, err := Parse(nil)
	require.NoError(t, err)
	require.Equal(t, []any{v1alpha1.BackendAuto, v1alpha1.EnforcementQuota, v1alpha1.AllocationThick,
		v1alpha1.OnDeletePurge, v1alpha1.ScrubNone, NodeLossNever},
		[]any{defaults.Backend, defaults.Enforcement, defaults.Allocation, defaults.OnDelete, defaults.Scrub,
			defaults.OnNodeLoss})
}

// Nothing said, none of its own, and a number are three different things.
func TestInodesParameter(t *testing.T) {
	for _, c := range []struct {
		class map[string]string
		want  int64
	}{
		{nil, 0}, {map[string]string{"inodes": "0"}, UnlimitedInodes},
		{map[string]string{"inodes": "unlimited"}, UnlimitedInodes},
		{map[string]string{"inodes": "5000"}, 5000},
	} {
		p, err := Parse(c.class)
		require.NoError(t, err)
		require.Equal(t, c.want, p.Inodes)
		var spec v1alpha1.VolumeSpec
		p.Apply(&spec)
		require.Equal(t, c.want, spec.Inodes)
		spec.Parameters = nil // a volume that was made without a class
		again, err := FromJSON(JSONOf(&spec))
		require.NoError(t, err)
		require.Equal(t, c.want, again.Inodes)
	}
	_, err := Parse(map[string]string{"inodes": "none"})
	require.ErrorContains(t, err, "not such a number")
}

// TestFSTypeByEitherName: the sidecars' key stands for fsType, and both may be
// there as long as they agree.
func TestFSTypeByEitherName(t *testing.T) {
	for _, class := range []map[string]string{
		{"fsType": "xfs"},
		{"csi.storage.k8s.io/fstype": "xfs"},
		{"fsType": "xfs", "csi.storage.k8s.io/fstype": "xfs"},
		{"fsType": "xfs", "csi.storage.k8s.io/fstype": ""},
	} {
		p, err := Parse(class)
		require.NoError(t, err, "%v", class)
		require.Equal(t, "xfs", p.FSType, "%v", class)
		require.Contains(t, p.JSON(), `"fsType":"xfs"`, "%v", class)
		require.NotContains(t, p.JSON(), "csi.storage", "%v", class)
	}
}

// TestApplyAlone refuses what means nothing without a cluster, and speaks of no
// StorageClass where there is none.
func TestApplyAlone(t *testing.T) {
	for _, test := range []struct {
		parameters map[string]string
		want       string // empty: taken
	}{
		{map[string]string{"backend": "loop", "onDelete": "recycle", "pool": "ssd", "csi.storage.k8s.io/fstype": "xfs"},
			""},
		{map[string]string{"onNodeLoss": "never", "poolSpread": "mostFree"}, ""},
		{map[string]string{"onNodeLoss": "afterDelay"},
			`parameter "onNodeLoss": means nothing without a cluster; leave it out`},
		{map[string]string{"nodeLossDelay": "1h"}, "without a cluster"},
		{map[string]string{"poolSpread": "apart"}, "`pool` takes one by its name"},
		{map[string]string{"poolSelector": "disk=ssd"}, "pools have no labels here"},
		{map[string]string{"onNodeLos": "never"},
			`parameter "onNodeLos": is not known; known: backend, enforcement, allocation, pool, fsType, `},
		{map[string]string{"backend": "looop"},
			`parameter "backend": value "looop" is not known (did you mean "loop"?)`},
	} {
		var spec v1alpha1.VolumeSpec
		canonical, err := ApplyAlone(test.parameters, &spec)
		if test.want == "" {
			require.NoError(t, err, "%v", test.parameters)
			require.NotEmpty(t, canonical)
			require.NotEmpty(t, spec.Backend)
			continue
		}
		require.ErrorContains(t, err, test.want)
		require.NotContains(t, err.Error(), "StorageClass")
		reasoned, is := err.(interface{ Reason() string })
		require.True(t, is)
		require.Equal(t, v1alpha1.ReasonInvalidParameter, reasoned.Reason())
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct {
		class map[string]string
		want  string
	}{
		{map[string]string{"fstype": "ext4"}, `"fstype": is not known (did you mean "fsType"?); known: backend, `},
		{map[string]string{"somethingElse": "1"}, `"somethingElse": is not known; known: backend, `},
		{map[string]string{"backend": "looop"},
			`value "looop" is not known (did you mean "loop"?); allowed: auto, directory, loop`},
		{map[string]string{"fsType": "zfs"},
			`"fsType": value "zfs" is not known (did you mean "xfs"?); allowed: ext4, xfs, btrfs`},
		{map[string]string{"fsType": "ext4", "csi.storage.k8s.io/fstype": "xfs"}, "give one of them"},
		{map[string]string{"pool": "../etc"}, `"pool": value "../etc": not a pool's name`},
		{map[string]string{"pool": strings.Repeat("a", 64)}, "not a pool's name"},
		{map[string]string{"poolSelector": "a=b=c"}, "not a label selector"},
		{map[string]string{"owner": "-1"}, "not a numeric id"},
		{map[string]string{"owner": "4294967295"}, "not a numeric id"}, // (uid_t)-1: unchanged
		{map[string]string{"mode": "rwxr-x---"}, "not an octal mode"},
		{map[string]string{"mode": "0888"}, "not an octal mode"},
		{map[string]string{"inodes": "-5"}, "not such a number"},
		{map[string]string{"trashRetention": "soon", "onDelete": "trash"}, "not such a duration"},
		{map[string]string{"trashRetention": "1h"}, "needs onDelete: trash"},
		{map[string]string{"mkfsOptions": "-m 0"}, "needs fsType"},
		{map[string]string{"mkfsOptions": strings.Repeat("-x ", 33), "fsType": "ext4"}, "33 words"},
		{map[string]string{"backend": "directory", "enforcement": "strict"},
			"use backend: loop, or enforcement: quota"},
		{map[string]string{"backend": "directory", "allocation": "thin"}, "is for images"},
		{map[string]string{"backend": "directory", "fsType": "xfs"}, "is for images"},
		{map[string]string{"enforcement": "none", "allocation": "thick"}, "is for images"},
		{map[string]string{"enforcement": "none", "backend": "loop"}, "leave one out"},
		{map[string]string{"enforcement": "none", "inodes": "7"}, "cannot be held"},
		{map[string]string{"pool": "a", "poolSelector": "b"}, "give one of them"},
		{map[string]string{"backend": strings.Repeat("x", 100000)}, "xxx..."},
	} {
		_, err := Parse(test.class)
		require.ErrorContains(t, err, test.want)
		require.Less(t, len(err.Error()), 900, "with advice behind it, it fits into an event")
		require.Equal(t, v1alpha1.ReasonInvalidParameter, err.(*Error).Reason())
	}
}

func TestCheckMode(t *testing.T) {
	for _, class := range []map[string]string{{"backend": "directory"}, {"enforcement": "none"}} {
		p, err := Parse(class)
		require.NoError(t, err)
		require.NoError(t, p.CheckMode(corev1.PersistentVolumeFilesystem))
		require.ErrorContains(t, p.CheckMode(corev1.PersistentVolumeBlock), "volumeMode: Block")
	}
}

// What goes into the annotation comes back the same, whatever the defaults of a
// later version are.
func TestJSON(t *testing.T) {
	for _, class := range []map[string]string{
		nil,
		{"backend": "directory", "inodes": "7", "owner": "5"},
		{"enforcement": "none"},
		{"backend": "directory", "inodes": "unlimited"},
		{"onDelete": "trash", "trashRetention": "90m", "scrub": "discard"},
		{"csi.storage.k8s.io/fstype": "ext4", "mkfsOptions": "-m 0", "poolSelector": "a in (b,c)"},
	} {
		p, err := Parse(class)
		require.NoError(t, err)
		back, err := FromJSON(p.JSON())
		require.NoError(t, err)
		var before, after v1alpha1.VolumeSpec
		p.Apply(&before)
		back.Apply(&after)
		require.Equal(t, before, after)
		require.Equal(t, p.JSON(), back.JSON())
	}
	_, err := FromJSON(`{"of":"tomorrow"}`)
	require.Error(t, err)
	_, err = FromJSON(`{`)
	require.Error(t, err)
}

package record

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVolumeSurvivesTheDisk(t *testing.T) {
	v := &Volume{ID: "pvc-1", CreatedAt: time.Unix(1, 0).UTC(), Backend: BackendLoop, SizeBytes: 3 << 30,
		FSType: "ext4",
		Origin: Origin{ClaimName: "data <&> \"x\"", ClaimLabels: map[string]string{"app": "db"},
			Deletion: Deletion{OnDelete: "trash", RetentionSeconds: 60}}}
	data, err := EncodeVolume(v)
	require.NoError(t, err)
	got, err := DecodeVolume(data)
	require.NoError(t, err)
	require.Equal(t, v, got)
}

func TestEveryFlippedByteIsNoticed(t *testing.T) {
	v := &Volume{ID: "pvc-1", CreatedAt: time.Unix(1, 0).UTC(), Backend: BackendDirectory, SizeBytes: 7}
	data, err := EncodeVolume(v)
	require.NoError(t, err)
	for i := range data {
		broken := bytes.Clone(data)
		broken[i] ^= 0x04
		got, err := DecodeVolume(broken)
		if err == nil {
			// White space between tokens carries nothing; whatever decodes must
			// be the very same volume.
			require.Equal(t, v, got, "byte %d", i)
		}
	}
}

func TestForeignRecordsAreUnreadable(t *testing.T) {
	pool, err := EncodePool(&Pool{UID: "u"})
	require.NoError(t, err)
	for name, data := range map[string]string{
		"empty": "", "not JSON": "hello", "another kind": string(pool),
		"a later format": strings.Replace(string(pool), `"format": 1`, `"format": 2`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeVolume([]byte(data))
			var unreadable *UnreadableError
			require.ErrorAs(t, err, &unreadable)
		})
	}
}

func TestCheckID(t *testing.T) {
	for _, ok := range []string{"a", "0", "pvc-7b6c1e0a-0000-4000-8000-000000000000-1", strings.Repeat("a", MaxID)} {
		require.NoError(t, CheckID(ok), ok)
	}
	for _, bad := range []string{"", ".", "..", ".quarry", "a/b", "a\x00b", "-a", "a-", "A", "lost+found", "a.b", "ä",
		"a\n", strings.Repeat("a", MaxID+1)} {
		var idErr *IDError
		require.ErrorAs(t, CheckID(bad), &idErr, "%q", bad)
	}
}

func FuzzDecodeVolume(f *testing.F) {
	data, err := EncodeVolume(&Volume{ID: "pvc-1", SizeBytes: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := DecodeVolume(data); err == nil && CheckID(v.ID) != nil {
			t.Fatalf("read a volume with the id %q", v.ID)
		}
	})
}

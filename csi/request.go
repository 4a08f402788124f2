package csi

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

const (
	// maxName is how long names, ids and other strings may be, in bytes; spec,
	// "Size Limits".
	maxName = 128
	// maxMap bounds the sum of a map's keys and values, in bytes; spec, "Size
	// Limits".
	maxMap = 4 << 10
	// maxPath is PATH_MAX with its NUL, in bytes.
	maxPath = 4096

	// MaxKey is the longest name that Volumes.Ensure gets, in bytes: a label's
	// value, less the dash and a number behind it.
	MaxKey = 56
)

// hashedKey is what keyOf makes of names that cannot stand for themselves.
var hashedKey = regexp.MustCompile(`^name-[0-9a-f]{40}$`)

// keyOf turns a volume's name into one that can be a directory's and a label's.
// The names that Kubernetes gives (pvc-<claim UID>) stay as they are; any other
// legal name is hashed, so that two names never get one key.
func keyOf(name string) (string, error) {
	switch {
	case name == "":
		return "", invalid("name is missing")
	case len(name) > maxName:
		return "", invalid("name is %d bytes long; at most %d are allowed", len(name), maxName)
	case !isText(name):
		return "", invalid("name %s has control characters or is no UTF-8", quote(name))
	}

	if len(name) <= MaxKey && v1alpha1.IsVolumeID(name) && !hashedKey.MatchString(name) {
		return name, nil
	}

	sum := sha256.Sum256([]byte(name))
	return "name-" + hex.EncodeToString(sum[:20]), nil
}

// checkID refuses a missing id, and reports whether a volume of that id is
// possible: the spec has NOT_FOUND for both, and success for deleting either.
func checkID(id string) (possible bool, err error) {
	if id == "" {
		return false, invalid("volume_id is missing")
	}
	return v1alpha1.IsVolumeID(id), nil
}

// existingID is checkID for calls that need the volume.
func existingID(id string) error {
	possible, err := checkID(id)
	if err == nil && !possible {
		err = status.Errorf(codes.NotFound,
			"there is no volume %s: that is not the id of a volume", quote(id))
	}
	return err
}

// checkPath refuses what is not an absolute path that says where it leads.
func checkPath(field, value string) error {
	switch {
	case value == "":
		return invalid("%s is missing", field)
	case len(value) >= maxPath:
		return invalid("%s is %d bytes long", field, len(value))
	case strings.ContainsRune(value, 0) || !path.IsAbs(value) || path.Clean(value) != value ||
		value == "/":
		return invalid("%s %s is not an absolute, clean path", field, quote(value))
	}
	return nil
}

// checkMap bounds a map of strings. Its content is never repeated in the error:
// it may be secret.
func checkMap(field string, m map[string]string) error {
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
	}

	if size > maxMap {
		return invalid("%s holds %d bytes; at most %d are allowed", field, size, maxMap)
	}

	return nil
}

// isText reports whether s is UTF-8 without control characters; spec,
// CreateVolumeRequest.name.
func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// quote makes a hostile string fit for a message or a log: one line, of bounded
// length, no control characters.
func quote(s string) string {
	const longest = 96
	more := ""
	if len(s) > longest {
		s, more = s[:longest], "..."
	}

	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if !unicode.IsPrint(r) {
			r = '\uFFFD'
		}
		b.WriteRune(r)
	}

	b.WriteString(more)
	b.WriteByte('"')
	return b.String()
}

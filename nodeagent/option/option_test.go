package option

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChecks(t *testing.T) {
	number, size := Number(4, 64), Size("kmg", 32, "64k")
	level := OrAlone(OneOf("sync", "async"))

	tests := []struct {
		check       Check
		value       string
		given       bool
		wrong       string
		description string
	}{
		{Flag, "", false, "", "a flag alone"},
		{Flag, "", true, "it takes no value", "a flag with an empty value"},
		{Flag, "1", true, "it takes no value", "a flag with a value"},
		{number, "4", true, "", "the least number"},
		{number, "64", true, "", "the largest number"},
		{number, "3", true, "it wants a number from 4 to 64", "a number that is too small"},
		{number, "65", true, "it wants a number from 4 to 64", "a number that is too large"},
		{number, "-4", true, "it wants a number from 4 to 64", "a negative number"},
		{number, "0x10", true, "it wants a number from 4 to 64", "another base"},
		{number, "", false, "it wants a number from 4 to 64", "no number"},
		{size, "4096", true, "", "a size without a unit"},
		{size, "64K", true, "", "a size with a unit"},
		{size, "64kk", true, "it wants a size such as 64k", "two units"},
		{size, "64b", true, "it wants a size such as 64k", "a unit that is not known"},
		{size, "k", true, "it wants a size such as 64k", "a unit alone"},
		{size, "4294967296", true, "it wants a size such as 64k", "a size of too many bits"},
		{level, "", false, "", "a word alone, where it may stand alone"},
		{level, "async", true, "", "one of the words"},
		{level, "", true, "it wants one of sync, async", "an empty word"},
		{OneOf("a"), "A", true, "it wants one of a", "another case"},
	}
	for _, test := range tests {
		require.Equal(t, test.wrong, test.check(test.value, test.given), test.description)
	}
}

func TestWants(t *testing.T) {
	require.Empty(t, Check(Flag).Wants())
	require.Equal(t, "a number from 1 to 300", Number(1, 300).Wants())
	require.Equal(t, "a size such as 64m", Size("km", 48, "64m").Wants())
	require.Equal(t, "one of sync, async, or nothing", OrAlone(OneOf("sync", "async")).Wants())
}

func TestErrorSaysWhatToDo(t *testing.T) {
	e := &Error{Of: "mount", Filesystem: "xfs", Option: "largio", Nearest: "largeio"}
	require.EqualError(t, e,
		`mount option "largio" is not allowed for xfs: unknown, did you mean "largeio"?`)

	e = &Error{Of: "mkfs", Filesystem: "ext4", Option: "-F", Reason: "formatting is never forced"}
	require.EqualError(t, e,
		`mkfs option "-F" is not allowed for ext4: formatting is never forced`)
}

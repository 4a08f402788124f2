package translate

import "github.com/quarry-storage/quarry/nodeagent/record"

// InlineAttribute marks, in the record on disk, a volume that lives and dies
// with one pod. No Volume object speaks of it.
const InlineAttribute = "quarry.storage/inline"

// IsInline reports whether a volume lives and dies with one pod.
func IsInline(v *record.Volume) bool { return v.Origin.Attributes[InlineAttribute] == "true" }

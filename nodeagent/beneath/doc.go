// Package beneath works on files below a directory that is held by a
// descriptor, and never leaves it.
//
// What is inside a volume belongs to its user and is hostile: a name can become
// a symlink between a check and a use, and a path that was built as a string is
// resolved anew at every call. So nothing here takes a path from the root. A
// Dir is a descriptor. To go deeper, openat2(2) is used with
//
//   - RESOLVE_BENEATH: no "..", no absolute path, no symlink leads above the
//     descriptor;
//   - RESOLVE_NO_SYMLINKS: no symlink is followed at all, also not one that
//     stays beneath (os.Root follows those, and a link from one volume into
//     another stays beneath the pool);
//   - RESOLVE_NO_MAGICLINKS: nor the links of /proc.
//
// Calls that openat2 does not cover (mkdirat, renameat2, unlinkat, symlinkat,
// fstatat) take one path element only, and the kernel does not follow the last
// element in any of them.
//
// Mount points are crossed, since volumes are mounted below their pool; NoCross
// refuses that too, for walks inside a volume.
package beneath

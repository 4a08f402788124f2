// Package admin holds the commands with which a person looks at Quarry (status,
// volumes, pools, describe, doctor) and looks after its volumes: the trash,
// orphans, adoption and recovery. They run on the administrator's machine with
// the administrator's rights, as `kubectl quarry ...`, and where it helps as
// `quarry ...`. What they decide and write is in packages diagnose and rescue;
// here it is asked for, shown and confirmed.
package admin

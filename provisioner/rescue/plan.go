package rescue

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Verb is what a step does, or why nothing is done.
type Verb string

// The verbs, in the order in which steps are listed and done.
const (
	// Unread: the disks of a node could not be read, so that nothing can be
	// said about them.
	Unread Verb = "unread"
	// Missing: where a pool should be there is no disk.
	Missing Verb = "missing"
	// Foreign: a disk of another cluster, left alone.
	Foreign Verb = "foreign"
	// First: something a person has to do first, or after. It holds nothing
	// else up.
	First Verb = "first"
	// Conflict: the disks or the cluster say two things, and a person has to
	// choose. Nothing is done.
	Conflict Verb = "conflict"
	// Refused: it would be done, but not now. Nothing is done.
	Refused Verb = "refused"
	// Lost: the cluster speaks of a volume that is on no disk.
	Lost Verb = "lost"

	// TakeOver gives a disk of another cluster to this one.
	TakeOver Verb = "take over"
	// WriteVolume writes the Volume of what is on disk.
	WriteVolume Verb = "write volume"
	// Move replaces the objects of a volume whose disk is on another node now.
	Move Verb = "move"
	// HandOver has Quarry handle a PersistentVolume that was made by hand from
	// now on.
	HandOver Verb = "hand over"
	// WritePV writes the PersistentVolume of a volume.
	WritePV Verb = "write pv"
	// WriteClaim writes the claim of a PersistentVolume.
	WriteClaim Verb = "write claim"
)

// order is the verbs' order; what changes something begins at TakeOver.
var order = []Verb{
	Unread,
	Missing,
	Foreign,
	First,
	Conflict,
	Refused,
	Lost,
	TakeOver,
	WriteVolume,
	Move,
	HandOver,
	WritePV,
	WriteClaim,
}

// Step is one line of a plan.
type Step struct {
	Verb Verb `json:"verb"`
	// Object is what it is about, as kind/name.
	Object string `json:"object"`
	Node   string `json:"node,omitempty"`
	Claim  string `json:"claim,omitempty"`
	Why    string `json:"why"`
	// Sees is what the volume's users will notice.
	Sees string `json:"sees,omitempty"`

	volume   *v1alpha1.Volume
	takeOver string // the cluster
}

// Changes reports whether applying the step writes something.
func (s *Step) Changes() bool {
	return slices.Index(order, s.Verb) >= slices.Index(order, TakeOver)
}

// NeedsDecision reports whether the step stands for something that was not
// brought back and could be.
func (s *Step) NeedsDecision() bool {
	return s.Verb == Conflict || s.Verb == Refused || s.Verb == Unread
}

// Options narrow a plan, or allow what is not done unasked.
type Options struct {
	// Claims writes claims that are gone. Otherwise PersistentVolumes wait for
	// them.
	Claims bool
	// Namespaces, if not empty, are those whose claims' volumes are looked at.
	Namespaces []string
	// TakeOver is the cluster whose disks are taken over; empty: none are.
	TakeOver string
	// Only, if not empty, are the volumes to look at, and decides which of
	// several of one PersistentVolume is meant.
	Only []string
}

// planner makes one plan.
type planner struct {
	*Snapshot
	o     Options
	steps []Step

	unusable map[int]string      // disks that are not to be used, by index: why
	live     map[string][]place  // volumes not in the trash, by id, on all disks
	byPV     map[string][]string // ids of live volumes on usable disks, by PersistentVolume
	trashed  map[string]place    // volumes in the trash of usable disks, by id
	readOK   map[string]bool     // nodes all of whose disks were read
	told     map[string]bool     // what to do first, said once
}

// place is a volume and the disk it is on.
type place struct {
	found *Found
	disk  *Disk
	index int
}

// Plan compares what is on disk with what the cluster says, and returns what
// would make it whole again, and what a person has to decide. It reads nothing
// and changes nothing; the same snapshot gives the same plan.
func Plan(s *Snapshot, o Options) []Step {
	p := &planner{
		Snapshot: s,
		o:        o,
		unusable: map[int]string{},
		live:     map[string][]place{},
		byPV:     map[string][]string{},
		trashed:  map[string]place{},
		readOK:   map[string]bool{},
		told:     map[string]bool{},
	}
	p.disks()
	for i := range s.Disks {
		if p.unusable[i] != "" {
			continue
		}
		for j := range s.Disks[i].Volumes {
			p.found(place{&s.Disks[i].Volumes[j], &s.Disks[i], i})
		}
	}

	p.lost()
	slices.SortStableFunc(p.steps, func(a, b Step) int {
		if c := slices.Index(order, a.Verb) - slices.Index(order, b.Verb); c != 0 {
			return c
		}
		return strings.Compare(a.Object, b.Object)
	})
	return p.steps
}

func (p *planner) add(verb Verb, object string, at place, why string, args ...any) *Step {
	s := Step{Verb: verb, Object: object, Why: fmt.Sprintf(why, args...)}
	if at.disk != nil {
		s.Node = at.disk.Node
	}

	if at.found != nil {
		s.volume = at.found.Volume
		if ref := at.found.Volume.Spec.Claim; ref != nil && ref.Name != "" {
			s.Claim = claimText(ref)
		}
	}

	p.steps = append(p.steps, s)
	return &p.steps[len(p.steps)-1]
}

// disks decides which disks are used, and indexes what is on them.
func (p *planner) disks() {
	for node, why := range p.Unread {
		p.add(Unread, "node/"+node, place{disk: &Disk{Node: node}},
			"its disks could not be read: %s", why)
	}

	nodesOf := map[string][]string{}
	for i := range p.Disks {
		d := &p.Disks[i]
		if _, known := p.readOK[d.Node]; !known {
			p.readOK[d.Node] = true
		}
		if d.UID != "" && !slices.Contains(nodesOf[d.UID], d.Node) {
			nodesOf[d.UID] = append(nodesOf[d.UID], d.Node)
		}
	}

	for i := range p.Disks {
		d := &p.Disks[i]
		p.unusable[i] = p.judge(d, nodesOf[d.UID])
		for j := range d.Volumes {
			f := &d.Volumes[j]
			at := place{f, d, i}
			switch id := f.Volume.Name; {
			case !f.InTrash:
				p.live[id] = append(p.live[id], at)
				if pv := f.Volume.Labels[v1alpha1.LabelPVName]; p.unusable[i] == "" && pv != "" {
					p.byPV[pv] = append(p.byPV[pv], id)
				}
			case p.unusable[i] == "" && f.Remaining > 0:
				// Of one that was deleted several times the last one counts.
				if was := p.trashed[id].found; was == nil || f.Remaining > was.Remaining {
					p.trashed[id] = at
				}
			}
		}
	}
}

// judge says why a disk is not used, and plans its taking over; "": it is used.
func (p *planner) judge(d *Disk, nodes []string) string {
	name := v1alpha1.PoolObjectName(d.Node, d.Pool)
	object, at := "pool/"+name, place{disk: d}
	known := p.Pools[name]
	switch {
	case d.Missing:
		p.add(Missing, object, at, "there is no disk: %s", d.Error)
		return "there is none"
	case d.Error != "":
		p.readOK[d.Node] = false
		p.add(Unread, object, at, "%s cannot be read: %s", d.Path, d.Error)
		return "it cannot be read"
	case len(nodes) > 1:
		slices.Sort(nodes)
		p.add(Refused, object, at,
			"the same disk, %s, is on the nodes %s: it was copied; take the copy away, and "+
				"run this again", d.UID, strings.Join(nodes, " and "))
		return "it is on two nodes"
	case known != nil && known.Spec.UID != "" && known.Spec.UID != d.UID:
		p.add(Refused, object, at,
			"disk %s is at %s, and the Pool remembers %s: its agent does not use it; if this is "+
				"the right disk, "+
				"`kubectl delete pools.quarry.storage %s` and run this again", d.UID,
			d.Path, known.Spec.UID, name)
		return "its Pool remembers another disk"
	case d.ClusterID == "" || d.ClusterID == p.ClusterID:
		return ""
	case p.o.TakeOver == d.ClusterID:
		if known == nil {
			p.add(Refused, object, at, "the agent has not written its Pool yet; run this again")
			return "its Pool is missing"
		}
		s := p.add(
			TakeOver,
			object,
			at,
			"disk %s at %s, with %s, belongs to cluster %s",
			d.UID,
			d.Path,
			volumesIn(d),
			d.ClusterID,
		)
		s.takeOver = d.ClusterID
		s.Sees = "the disk belongs to this cluster from then on; the other one must not use " +
			"it any more"
		return ""
	}

	p.add(Foreign, object, at,
		"disk %s at %s, with %s, belongs to cluster %s, and is left alone; --take-over %s makes "+
			"it this cluster's",
		d.UID, d.Path, volumesIn(d), d.ClusterID, d.ClusterID)
	return "it belongs to another cluster"
}

func volumesIn(d *Disk) string {
	if len(d.Volumes) == 1 {
		return "1 volume"
	}
	return fmt.Sprintf("%d volumes", len(d.Volumes))
}

// first says once what a person should do before, or after.
func (p *planner) first(object, why string, args ...any) {
	if !p.told[object] {
		p.told[object] = true
		p.add(First, object, place{}, why, args...)
	}
}

// wanted reports whether the options ask for a volume.
func (p *planner) wanted(v *v1alpha1.Volume) bool {
	if len(p.o.Only) > 0 && !slices.Contains(p.o.Only, v.Name) {
		return false
	}
	return len(p.o.Namespaces) == 0 ||
		v.Spec.Claim != nil && slices.Contains(p.o.Namespaces, v.Spec.Claim.Namespace)
}

// found plans for one volume of a disk that is used.
func (p *planner) found(at place) {
	v := at.found.Volume
	id, pvName := v.Name, v.Labels[v1alpha1.LabelPVName]
	object := "volume/" + id
	record, pv := p.Volumes[id], p.PVs[pvName]
	switch {
	case !p.wanted(v), record != nil && isUnderWay(record):
		return
	case at.found.InTrash:
		p.inTrash(at, record, pv)
		return
	case pvName == "":
		if record == nil {
			p.add(Conflict, object, at,
				"it was made without a cluster, and does not say which PersistentVolume is its "+
					"own; it is left alone")
		}
		return
	case len(p.live[id]) > 1:
		p.add(Conflict, object, at,
			"it is on several disks: %s; take the copies away, and run this again", p.places(id))
		return
	case !p.chosen(at, record, pv):
		return
	}

	if p.moved(at, record, pv) {
		p.move(at, record, pv)
		return
	}

	if record == nil {
		p.add(WriteVolume, object, at,
			"it is on disk in pool %s, and no Volume speaks of it", at.disk.Pool)
	} else if record.Spec.Claim != nil {
		// The cluster knows better than the disk which claim it is for by now.
		v = v.DeepCopy()
		v.Spec.Claim = record.Spec.Claim
		at.found = &Found{Volume: v}
	}

	switch {
	case pv == nil:
		p.writePV(at)
	case !names(pv, id):
		p.handOver(at, pv)
	case pv.Status.Phase == corev1.VolumeAvailable:
		p.writeClaim(at)
	}
}

// isUnderWay reports whether a volume is being made or deleted, which others
// do.
func isUnderWay(record *v1alpha1.Volume) bool {
	return record.Spec.DesiredState != v1alpha1.DesiredPresent || !provisioner.WasReady(record)
}

func (p *planner) places(id string) string {
	var all []string
	for _, at := range p.live[id] {
		all = append(all, at.disk.Node+":"+at.disk.Path)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// chosen reports whether this volume is that of its PersistentVolume, where the
// disks hold several attempts for it.
func (p *planner) chosen(at place, record *v1alpha1.Volume, pv *corev1.PersistentVolume) bool {
	id, pvName := at.found.Volume.Name, at.found.Volume.Labels[v1alpha1.LabelPVName]
	if pv != nil {
		named, _, ours := behind(pv)
		if ours && named != id {
			switch {
			case record != nil:
			case slices.Contains(p.o.Only, id):
				p.add(WriteVolume, "volume/"+id, at,
					"PersistentVolume %s uses volume %s, so this one becomes an orphan, which "+
						"`kubectl quarry orphans delete` can delete", pvName, named)
			default:
				p.add(Conflict, "volume/"+id, at,
					"PersistentVolume %s uses volume %s; this one, made for the same claim, "+
						"is left alone", pvName, named)
			}
			return false
		}
		if ours {
			return true
		}
	}

	var others []string
	for _, other := range p.byPV[pvName] {
		if other == id {
			continue
		}
		if o := p.Volumes[other]; o != nil && o.Spec.DesiredState != v1alpha1.DesiredPresent {
			continue // it is being deleted
		}
		others = append(others, other)
	}

	if len(others) == 0 ||
		slices.Contains(p.o.Only, id) &&
			!slices.ContainsFunc(
				others,
				func(o string) bool { return slices.Contains(p.o.Only, o) },
			) {
		return true
	}

	p.add(Conflict, "volume/"+id, at,
		"the disks also hold %s for PersistentVolume %s: one was used, the others never were; "+
			"look into them, and run this again with --only %s or with another id",
		strings.Join(others, ", "), pvName, id)
	return false
}

// inTrash plans for a volume that was deleted and is still kept.
func (p *planner) inTrash(at place, record *v1alpha1.Volume, pv *corev1.PersistentVolume) {
	id := at.found.Volume.Name
	switch {
	case at.found.Remaining == 0 || len(p.live[id]) > 0 || p.trashed[id].found != at.found:
	case pv != nil && names(pv, id):
		p.add(Refused, "volume/"+id, at,
			"it is in the trash, and PersistentVolume %s still names it: restore it (`kubectl "+
				"quarry trash restore %s`) once it has a Volume, or delete that PersistentVolume",
			pv.Name, id)
	case record == nil:
		p.add(WriteVolume, "volume/"+id, at,
			"it is in the trash of pool %s, and no Volume speaks of it; `kubectl quarry trash` "+
				"can handle it then", at.disk.Pool)
	}
}

// writePV plans the PersistentVolume of a volume that has none.
func (p *planner) writePV(at place) {
	v := at.found.Volume
	object := "persistentvolume/" + v.Labels[v1alpha1.LabelPVName]
	if p.Nodes[at.disk.Node] == nil {
		p.add(Refused, object, at, "Node %s does not exist", at.disk.Node)
		return
	}

	if class := v.Spec.StorageClassName; class != "" && !p.Classes[class] {
		p.first("storageclass/"+class,
			"volumes of this class exist, and the class does not; if there was one, make it "+
				"again, so that they can grow and new ones can be made")
	}

	ref := v.Spec.Claim
	if ref == nil || ref.Name == "" {
		p.add(WritePV, object, at,
			"volume %s has none; no claim is recorded, so it is offered to any", v.Name)
		return
	}

	claim := p.Claims[client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}]
	switch {
	case claim == nil:
		p.add(WritePV, object, at,
			"volume %s has none; it is kept for claim %s", v.Name, claimText(ref))
	case claim.Spec.VolumeName == "":
		p.add(WritePV, object, at,
			"volume %s has none; claim %s waits for it", v.Name, claimText(ref))
	case claim.Spec.VolumeName == v.Labels[v1alpha1.LabelPVName]:
		p.add(
			WritePV,
			object,
			at,
			"volume %s has none; claim %s, which is %s, gets it back",
			v.Name,
			claimText(ref),
			claim.Status.Phase,
		)
	default:
		p.add(Conflict, object, at,
			"claim %s is bound to PersistentVolume %s by now; restore the volume for another "+
				"claim with `kubectl quarry orphans restore %s --claim NAMESPACE/NAME`",
			claimText(ref), claim.Spec.VolumeName, v.Name)
		return
	}

	p.writeClaim(at)
}

// writeClaim plans the claim of a PersistentVolume that waits for it.
func (p *planner) writeClaim(at place) {
	ref := at.found.Volume.Spec.Claim
	if ref == nil || ref.Name == "" || p.Claims[client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	}] != nil {
		return
	}

	if !p.Namespaces[ref.Namespace] {
		p.first("namespace/"+ref.Namespace,
			"claims of this namespace had volumes, and the namespace does not exist; make it again")
		return
	}

	if p.o.Claims {
		p.add(
			WriteClaim,
			"persistentvolumeclaim/"+ref.Name,
			at,
			"claim %s is gone, and --claims asks for it",
			claimText(ref),
		)
	}
}

// handOver plans for a PersistentVolume made by hand, whose data became a
// volume when it was adopted.
func (p *planner) handOver(at place, pv *corev1.PersistentVolume) {
	v := at.found.Volume
	if pv.Spec.Local != nil && v.Spec.Adopt != nil && v.Spec.Adopt.Path == pv.Spec.Local.Path &&
		!p.wrongHost(pv, at.disk.Node) {
		p.add(
			HandOver,
			"persistentvolume/"+pv.Name,
			at,
			"it was made by hand, and what is at %s was adopted as volume %s",
			pv.Spec.Local.Path,
			v.Name,
		)
		return
	}
	p.add(Conflict, "persistentvolume/"+pv.Name, at,
		"a PersistentVolume of this name exists, and it is not one of Quarry's; volume %s "+
			"is left alone", v.Name)
}

// lost reports PersistentVolumes whose volume is on no disk.
func (p *planner) lost() {
	for name, pv := range p.PVs {
		id, node, ours := behind(pv)
		if !ours || len(p.live[id]) > 0 || p.trashed[id].found != nil ||
			pv.DeletionTimestamp != nil {
			continue
		}

		ref := &v1alpha1.ClaimReference{}
		if c := pv.Spec.ClaimRef; c != nil {
			ref.Namespace, ref.Name = c.Namespace, c.Name
		}
		if !p.wanted(&v1alpha1.Volume{
			ObjectMeta: metaNamed(id),
			Spec:       v1alpha1.VolumeSpec{Claim: ref},
		}) {
			continue
		}

		s := Step{
			Verb:   Lost,
			Object: "persistentvolume/" + name,
			Node:   node,
			Claim:  claimText(ref),
		}
		switch read, known := p.readOK[node]; {
		case known && read:
			s.Why = fmt.Sprintf(
				"volume %s is on no disk that could be read; if its disk is nowhere else, the "+
					"data is gone: restore a backup, or delete the claim", id)
		case p.Nodes[node] == nil:
			s.Why = fmt.Sprintf(
				"volume %s was on node %s, which does not exist; bring its disk to another node, "+
					"or delete the claim", id, node)
		default:
			s.Why = fmt.Sprintf(
				"volume %s is on no disk that could be read, but not all disks of node %s could",
				id,
				node,
			)
		}

		p.steps = append(p.steps, s)
	}
}

package layer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"slices"
)

// stringTable keeps each string once and numbers it.
type stringTable struct {
	seed  maphash.Seed
	arena []byte
	ends  []uint64 // ends[i] is where string i ends; it begins where i-1 ends
	slots []uint32 // open addressing, linear; number + 1, 0 is free
}

func (t *stringTable) init() {
	t.seed = maphash.MakeSeed() // not to be steered by a hostile layer
	t.slots = make([]uint32, 1<<10)
	t.ends = make([]uint64, 0, 1<<9)
}

// get is a string by its number. It stays valid, as old arenas live on while
// they are referred to.
func (t *stringTable) get(id uint32) []byte {
	var start uint64
	if id > 0 {
		start = t.ends[id-1]
	}
	return t.arena[start:t.ends[id]]
}

// lookup finds a string's number.
func (t *stringTable) lookup(s []byte) (uint32, bool) {
	id, _, ok := t.find(s)
	return id, ok
}

func (t *stringTable) find(s []byte) (id uint32, slot uint64, ok bool) {
	mask := uint64(len(t.slots) - 1)
	for slot = maphash.Bytes(t.seed, s) & mask; ; slot = (slot + 1) & mask {
		v := t.slots[slot]
		if v == 0 {
			return 0, slot, false
		}
		if bytes.Equal(t.get(v-1), s) {
			return v - 1, slot, true
		}
	}
}

// intern gives a string's number, a new one where it has none.
func (t *stringTable) intern(s []byte) (uint32, error) {
	id, slot, ok := t.find(s)
	if ok {
		return id, nil
	}
	if len(t.ends) >= maxMerge || len(t.arena)+len(s) >= math.MaxUint32 {
		return 0, fmt.Errorf("%w: more than 4 GiB of names", ErrFormat)
	}
	id = uint32(len(t.ends))
	t.arena = append(t.arena, s...)
	t.ends = append(t.ends, uint64(len(t.arena)))
	t.slots[slot] = id + 1
	if len(t.ends) > len(t.slots)/4*3 {
		t.grow()
	}
	return id, nil
}

func (t *stringTable) grow() {
	t.slots = make([]uint32, 2*len(t.slots))
	mask := uint64(len(t.slots) - 1)
	for id := range t.ends {
		slot := maphash.Bytes(t.seed, t.get(uint32(id))) & mask
		for t.slots[slot] != 0 {
			slot = (slot + 1) & mask
		}
		t.slots[slot] = uint32(id) + 1
	}
}

// childTable finds nodes by parent and name.
type childTable struct {
	seed  uint64
	slots []uint32 // open addressing, linear; a node, 0 is free
	n     int
}

func (t *childTable) init() {
	t.seed = rand.Uint64() // not to be steered by a hostile layer
	t.slots = make([]uint32, 1<<10)
}

func (t *childTable) hash(parent, name uint32) uint64 {
	h := (uint64(parent)<<32 | uint64(name)) ^ t.seed
	h = (h ^ h>>32) * 0x9e3779b97f4a7c15
	h = (h ^ h>>29) * 0xbf58476d1ce4e5b9
	return h ^ h>>32
}

// find is the node of name in parent, 0 where there is none.
func (t *childTable) find(m *merger, parent, name uint32) uint32 {
	mask := uint64(len(t.slots) - 1)
	for slot := t.hash(parent, name) & mask; ; slot = (slot + 1) & mask {
		node := t.slots[slot]
		if node == 0 || m.nodes[node].parent == parent && m.nodes[node].name == name {
			return node
		}
	}
}

// insert adds a node that find does not find.
func (t *childTable) insert(m *merger, node uint32) {
	if t.n++; t.n > len(t.slots)/4*3 {
		old := t.slots
		t.slots = make([]uint32, 2*len(old))
		for _, n := range old {
			if n != 0 {
				t.put(m, n)
			}
		}
	}
	t.put(m, node)
}

func (t *childTable) put(m *merger, node uint32) {
	mask := uint64(len(t.slots) - 1)
	slot := t.hash(m.nodes[node].parent, m.nodes[node].name) & mask
	for t.slots[slot] != 0 {
		slot = (slot + 1) & mask
	}
	t.slots[slot] = node
}

// remove takes a node out and moves those behind it up, so that no chain breaks.
func (t *childTable) remove(m *merger, node uint32) {
	mask := uint64(len(t.slots) - 1)
	hole := t.hash(m.nodes[node].parent, m.nodes[node].name) & mask
	for t.slots[hole] != node {
		hole = (hole + 1) & mask
	}
	t.n--
	for slot := hole; ; {
		slot = (slot + 1) & mask
		n := t.slots[slot]
		if n == 0 {
			t.slots[hole] = 0
			return
		}
		// n may fill the hole unless its own place lies behind it.
		if home := t.hash(m.nodes[n].parent, m.nodes[n].name) & mask; (slot-home)&mask >= (slot-hole)&mask {
			t.slots[hole] = n
			hole = slot
		}
	}
}

// xattrSets keeps each distinct set of extended attributes once.
type xattrSets struct {
	ids   map[string]uint32
	sets  [][]xattrRef // set 0 is the empty one
	total int          // attributes of all sets
	refs  []xattrRef
	key   []byte
	order []xattr
}

// xattrRef is one attribute: two strings.
type xattrRef struct{ name, value uint32 }

func (s *xattrSets) init() {
	s.ids = make(map[string]uint32)
	s.sets = make([][]xattrRef, 1)
}

// intern gives the number of a set, 0 for none. Names are unique in it.
func (s *xattrSets) intern(names *stringTable, xs []xattr) (uint32, error) {
	if len(xs) == 0 {
		return 0, nil
	}
	s.order = append(s.order[:0], xs...)
	slices.SortFunc(s.order, func(a, b xattr) int { return cmp.Compare(string(a.name), string(b.name)) })
	s.refs, s.key = s.refs[:0], s.key[:0]
	for _, x := range s.order {
		name, err := names.intern(x.name)
		if err != nil {
			return 0, err
		}
		value, err := names.intern(x.value)
		if err != nil {
			return 0, err
		}
		s.refs = append(s.refs, xattrRef{name, value})
		s.key = binary.LittleEndian.AppendUint32(s.key, name)
		s.key = binary.LittleEndian.AppendUint32(s.key, value)
	}
	if id, ok := s.ids[string(s.key)]; ok {
		return id, nil
	}
	id := uint32(len(s.sets))
	s.sets = append(s.sets, slices.Clone(s.refs))
	s.total += len(s.refs)
	s.ids[string(s.key)] = id
	return id, nil
}

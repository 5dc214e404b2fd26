package fusefs

import "sync"

// handles gives numbers to open files and directories. A number is a slot and
// how often the slot was used before, so that one that was closed is found never
// again: it would take 2^32 opens of one slot.
type handles[T any] struct {
	mu    sync.RWMutex
	slots []handleSlot[T] // protected by mu
	free  []uint32        // protected by mu; empty slots, the last is used next
}

type handleSlot[T any] struct {
	uses  uint32
	value *T // nil: empty
}

const slotBits = 32

// add enters a value and gives its number.
func (t *handles[T]) add(v *T) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.free) == 0 {
		t.slots = append(t.slots, handleSlot[T]{})
		t.free = append(t.free, uint32(len(t.slots)-1))
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.slots[i].value = v
	return uint64(t.slots[i].uses)<<slotBits | uint64(i)
}

// get finds a value; nil for a number that is not open.
func (t *handles[T]) get(fh uint64) *T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if s := t.slotLocked(fh); s != nil {
		return s.value
	}
	return nil
}

// remove takes a value out; nil for a number that is not open.
func (t *handles[T]) remove(fh uint64) *T {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slotLocked(fh)
	if s == nil {
		return nil
	}
	v := s.value
	s.value = nil
	s.uses++
	t.free = append(t.free, uint32(fh))
	return v
}

// drain takes all values out.
func (t *handles[T]) drain() []*T {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*T
	for i := range t.slots {
		s := &t.slots[i]
		if s.value == nil {
			continue
		}
		out = append(out, s.value)
		s.value = nil
		s.uses++
		t.free = append(t.free, uint32(i))
	}
	return out
}

// slotLocked is the slot that fh means, if it is in use. Preconditions: mu is held.
func (t *handles[T]) slotLocked(fh uint64) *handleSlot[T] {
	i := uint64(uint32(fh))
	if i >= uint64(len(t.slots)) {
		return nil
	}
	s := &t.slots[i]
	if s.value == nil || uint64(s.uses) != fh>>slotBits {
		return nil
	}
	return s
}

package fusefs

import (
	"sync"
	"testing"
)

func TestAClosedHandleIsNotFoundAgain(t *testing.T) {
	var table handles[int]
	first := table.add(new(int))
	if table.get(first) == nil {
		t.Fatal("an open handle is not found")
	}
	if table.remove(first) == nil {
		t.Fatal("an open handle cannot be removed")
	}
	second := table.add(new(int))
	if uint32(second) != uint32(first) {
		t.Errorf("slot %d is used although %d is free", uint32(second), uint32(first))
	}
	if second == first {
		t.Error("the number of a closed handle is used again")
	}
	if table.get(first) != nil {
		t.Error("a closed handle is found after its slot is used again")
	}
	if table.remove(first) != nil {
		t.Error("a closed handle can be removed again")
	}
	if table.get(second) == nil {
		t.Error("removing a closed handle took the one in its slot")
	}
}

func TestNumbersThatWereNeverGivenAreNotFound(t *testing.T) {
	var table handles[int]
	table.add(new(int))
	for _, fh := range []uint64{1, 1 << 32, 1<<64 - 1, 1<<32 | 1} {
		if table.get(fh) != nil || table.remove(fh) != nil {
			t.Errorf("handle %#x is found", fh)
		}
	}
}

func TestDrainTakesWhatIsOpen(t *testing.T) {
	var table handles[int]
	var fhs []uint64
	for range 5 {
		fhs = append(fhs, table.add(new(int)))
	}
	table.remove(fhs[2])
	if got := len(table.drain()); got != 4 {
		t.Errorf("drained %d handles, want 4", got)
	}
	for _, fh := range fhs {
		if table.get(fh) != nil {
			t.Errorf("handle %#x is found after drain", fh)
		}
	}
	if got := len(table.drain()); got != 0 {
		t.Errorf("drained %d handles of none", got)
	}
}

func TestHandlesOfManyAtOnceDoNotMix(t *testing.T) {
	var table handles[int]
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				v := w<<16 | i
				fh := table.add(&v)
				if got := table.get(fh); got != &v {
					t.Errorf("handle %#x leads elsewhere", fh)
				}
				if got := table.remove(fh); got != &v {
					t.Errorf("handle %#x removed another", fh)
				}
			}
		})
	}
	wg.Wait()
}

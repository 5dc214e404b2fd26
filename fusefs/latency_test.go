package fusefs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// said is what was written to a file that stands for the device.
func said(t *testing.T, file string) []uint32 {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []uint32
	for ; len(b) >= 4; b = b[4:] {
		out = append(out, binary.NativeEndian.Uint32(b))
	}
	return out
}

func TestProcessorsStayAwakeDuringBurstsAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := newFakeLoop(func(fuseRequest) {})
	l.watch.processors.open(file)
	go l.serve()
	for range 3 { // a request now and then
		l.ask(quick)
		time.Sleep((slowTicks + 2) * watchTick)
	}
	if got := said(t, file); len(got) > 0 {
		t.Fatalf("single requests are taken for bursts: %v", got)
	}
	var want []uint32
	for range 2 {
		for end := time.Now().Add(50 * watchTick); time.Now().Before(end); {
			l.ask(quick)
		}
		if want = append(want, noLatency); !slices.Equal(said(t, file), want) {
			t.Fatalf("in a burst: %v, want %v", said(t, file), want)
		}
		want = append(want, anyLatency)
		for deadline := time.Now().Add(10 * time.Second); !slices.Equal(said(t, file), want); time.Sleep(watchTick) {
			if time.Now().After(deadline) {
				t.Fatalf("after a burst: %v, want %v", said(t, file), want)
			}
		}
	}
	l.unmount()
	if err := l.watch.processors.close(); err != nil {
		t.Fatal(err)
	}
}

func TestTheEndOfAMountDoesNotWaitForTheEndOfABurst(t *testing.T) {
	best := time.Hour
	for range 10 { // a busy machine may be slow some of the time
		l := newFakeLoop(func(fuseRequest) {})
		go l.serve()
		l.ask(quick)
		time.Sleep(2 * watchTick)
		began := time.Now()
		l.unmount()
		best = min(best, time.Since(began))
	}
	if best > slowTicks*watchTick/2 {
		t.Errorf("it took %v", best)
	}
}

func TestWithoutTheDeviceProcessorsAreLeftAlone(t *testing.T) {
	var p processors
	p.open(filepath.Join(t.TempDir(), "none"))
	p.keepAwake()
	p.letSleep()
	if err := p.close(); err != nil || p.awake {
		t.Fatal(err, p.awake)
	}
}

func TestProcessorsWithNoDriverAreNotKeptAwake(t *testing.T) {
	file := filepath.Join(t.TempDir(), "current_driver")
	if !idleDriverWorks(file) {
		t.Error("one that is not told counts as none")
	}
	for name, works := range map[string]bool{"none\n": false, "intel_idle\n": true, "haltpoll\n": true} {
		if err := os.WriteFile(file, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if idleDriverWorks(file) != works {
			t.Errorf("driver %q: %v", name, !works)
		}
	}
}

package bundle

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

func TestARepackKnowsWhetherWritersAreHeld(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hold, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	daemon, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	v := &View{hold: hold}
	if err := v.stillFrozen(); err != nil {
		t.Errorf("with nothing to read: %v", err)
	}
	// The end of the answer's line, which the decoder of the answer may leave.
	if _, err := daemon.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.stillFrozen(); err != nil {
			t.Errorf("with the end of an answer to read: %v", err)
		}
	}
	if err := daemon.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.stillFrozen(); !errors.Is(err, errThawed) {
		t.Errorf("after the daemon let go: %v", err)
	}
	if err := (&View{}).stillFrozen(); err != nil {
		t.Errorf("of a bundle that is not mounted: %v", err)
	}
}

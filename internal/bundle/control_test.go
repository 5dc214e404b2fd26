package bundle

import (
	"encoding/json"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// starved takes no connection for want of descriptors, as often as it says.
type starved struct {
	net.Listener
	times int
}

func (l *starved) Accept() (net.Conn, error) {
	if l.times > 0 {
		l.times--
		return nil, unix.EMFILE
	}
	return l.Listener.Accept()
}

func TestAControlSocketAnswersWhenThereAreDescriptorsAgain(t *testing.T) {
	name := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	s := &controlServer{
		listener: &starved{l, 2}, log: slog.New(slog.DiscardHandler),
		status: func() DaemonStatus { return DaemonStatus{PID: 7} },
	}
	ended := make(chan struct{})
	go func() { defer close(ended); s.serve() }()
	conn, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var st DaemonStatus
	if err := json.NewEncoder(conn).Encode(controlRequest{Op: "status"}); err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(conn).Decode(&st); err != nil || st.PID != 7 {
		t.Errorf("answer: %+v, %v", st, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

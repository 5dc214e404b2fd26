package fusefs

import (
	"bytes"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// asUser runs f on a thread whose file system accesses are a plain user's. The
// thread ends with f: it is never anyone else's.
func asUser(t *testing.T, id int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			t.Errorf("setgroups: %v", errno)
			return
		}
		if err := unix.Setfsgid(id); err != nil {
			t.Errorf("setfsgid: %v", err)
			return
		}
		// This drops the capabilities that override permissions as well.
		if err := unix.Setfsuid(id); err != nil {
			t.Errorf("setfsuid: %v", err)
			return
		}
		f()
	}()
	<-done
}

// panicStatus is what the handler of panics answers.
func panicStatus(opt *Options) fuse.Status {
	var log bytes.Buffer
	opt.Log = slog.New(slog.NewTextHandler(&log, nil))
	st := opt.mountOptions().PanicHandler("out of cheese")
	if !strings.Contains(log.String(), "out of cheese") || !strings.Contains(log.String(), "panicStatus") {
		return fuse.OK
	}
	return st
}

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

// asUser runs f on a thread that is a plain user's, with no capabilities. The
// thread ends with f: it is never anyone else's.
func asUser(t testing.TB, id int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			t.Errorf("setgroups: %v", errno)
			return
		}
		// Not by way of package syscall, which would change every thread. Without
		// allow_other all of a process' ids must be those of the one who mounted.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(id), uintptr(id), uintptr(id)); errno != 0 {
			t.Errorf("setresgid: %v", errno)
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(id), uintptr(id), uintptr(id)); errno != 0 {
			t.Errorf("setresuid: %v", errno)
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
	st := opt.protocolOptions().PanicHandler("out of cheese")
	if !strings.Contains(log.String(), "out of cheese") || !strings.Contains(log.String(), "panicStatus") {
		return fuse.OK
	}
	return st
}

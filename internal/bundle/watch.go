package bundle

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// removal tells when a file that is held open is unlinked: the bundle of a live
// mount was removed, as scripts do that are written for extracted bundles.
type removal struct {
	events *os.File
	gone   chan struct{} // closed then
	done   chan struct{} // closed when nobody watches any more
}

// watchRemoval watches an open file. An unlink changes its link count, which is
// IN_ATTRIB (inotify(7)).
func watchRemoval(f *os.File) (*removal, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch bundle: %w", err)
	}
	r := &removal{events: os.NewFile(uintptr(fd), "inotify"), gone: make(chan struct{}), done: make(chan struct{})}
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB); err != nil {
		_ = r.events.Close()
		return nil, fmt.Errorf("watch bundle: %w", err)
	}
	go r.run(f)
	return r, nil
}

func (r *removal) run(f *os.File) {
	defer close(r.done)
	buf := make([]byte, 4096)
	for {
		if unlinked(f) {
			close(r.gone)
			return
		}
		if _, err := r.events.Read(buf); err != nil {
			return // closed
		}
	}
}

func unlinked(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink == 0
}

// stop ends the watch.
func (r *removal) stop() error {
	err := r.events.Close()
	<-r.done
	return err
}

package bundle

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// removal tells when the bundle of a live mount is being removed, as scripts do that
// are written for extracted bundles.
type removal struct {
	events *os.File
	parts  []*os.File    // of the bundle: with one of them unlinked it is none any more
	gone   chan struct{} // closed then
	done   chan struct{} // closed when nobody watches any more
}

// watchRemoval watches a bundle's directories, from which names go, and the file that
// its daemon holds. The sooner it is known the better: the mountpoint is busy for who
// removes, until it is detached.
func watchRemoval(d *dir, held *os.File) (*removal, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch bundle: %w", err)
	}
	r := &removal{events: os.NewFile(uintptr(fd), "inotify"), gone: make(chan struct{}), done: make(chan struct{})}
	if err := r.watch(fd, d, held); err != nil {
		return nil, errors.Join(err, r.events.Close(), r.closeParts())
	}
	go r.run(held)
	return r, nil
}

func (r *removal) watch(fd int, d *dir, held *os.File) error {
	// Unlinking an open file changes its link count, which is IN_ATTRIB (inotify(7)).
	for path, mask := range map[string]uint32{
		sys.ProcPath(int(held.Fd()), ""): unix.IN_ATTRIB,
		d.top.path(""):                   unix.IN_DELETE,
	} {
		if _, err := unix.InotifyAddWatch(fd, path, mask); err != nil {
			return fmt.Errorf("watch bundle: %w", err)
		}
	}
	for _, name := range []string{upperName, workName} {
		f, err := d.top.folder(name)
		if err != nil {
			return fmt.Errorf("watch bundle: %w", err)
		}
		r.parts = append(r.parts, f.fd)
	}
	return nil
}

func (r *removal) run(held *os.File) {
	defer close(r.done)
	buf := make([]byte, 4096)
	for {
		for _, f := range append([]*os.File{held}, r.parts...) {
			if unlinked(f) {
				close(r.gone)
				return
			}
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

func (r *removal) closeParts() error {
	var errs []error
	for _, f := range r.parts {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// stop ends the watch.
func (r *removal) stop() error {
	err := r.events.Close()
	<-r.done
	return errors.Join(err, r.closeParts())
}

package bundle

import (
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// firstOpenTries bounds how many inodes are looked at for a file to open.
const firstOpenTries = 1000

// openOnce opens a regular file of a new mount. The kernel takes an answer to its first
// OPEN for all later ones (docs/fuse.md, Opens), and until then sends a RELEASE for each
// file that CREATE has opened: what fills a new mount, as tar does, opens none. Where no
// file is found, or it cannot be opened, nothing is lost but that.
func (m *mounting) openOnce() {
	if m.state.Options.Passthrough || m.state.Options.ReadOnly {
		return
	}
	name := firstFile(m.lower.Tree)
	if name == "" {
		return
	}
	point, err := m.dir.openPoint()
	if err != nil {
		return
	}
	defer point.Close()
	root := int(point.Fd())
	var st unix.Stat_t // what was a file may be a device by now
	if err := unix.Fstatat(root, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == nil {
		_ = unix.Close(fd) // nothing was written
	}
}

// firstFile is the path of a regular file that anybody may read; "" where none is found
// among the first inodes.
func firstFile(t *layer.Tree) string {
	for ino := layer.RootIno; ino < layer.RootIno+firstOpenTries && int(ino) <= t.Len(); ino++ {
		a, err := t.Attr(ino)
		if err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG || a.Mode&0o444 != 0o444 {
			continue
		}
		if name, err := t.PathOf(ino); err == nil && name != "" {
			return name
		}
	}
	return ""
}

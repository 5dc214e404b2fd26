package overlay

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// noTruncate is fillData's "keep the whole length".
const noTruncate = -1

// openUpper opens the upper file of a node. Preconditions: treeMu is held; n has
// an upper object.
func (fs *FS) openUpper(n *node, flags int) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fs.openUpperLocked(n, flags)
}

// openUpperLocked is openUpper. Preconditions: n.mu is held too.
func (fs *FS) openUpperLocked(n *node, flags int) (int, error) {
	p, err := fs.placeLocked(n)
	if err != nil {
		return -1, err
	}
	defer fs.put(p)
	return fs.upper.open(p.at, flags)
}

// kept is what moving data into an upper file undoes there. The file has it all the
// same: it is shown, changed here too while the data moves, and restored at the end. An
// attribute of the file has it too (xattrFilling), for the mount after a crash. The node's
// mu protects it.
type kept struct {
	atime Timespec
	mtime Timespec
	size  int64  // of the upper file, while data moves
	caps  []byte // security.capability; nil: none
}

// String is k as seconds.nanoseconds of both times, and the capability's bytes in hexadecimal
// where there is one.
func (k *kept) String() string {
	s := fmt.Sprintf("%d.%09d %d.%09d", k.atime.Sec, k.atime.Nsec, k.mtime.Sec, k.mtime.Nsec)
	if k.caps != nil {
		s += fmt.Sprintf(" %x", k.caps)
	}
	return s
}

// parseKept reads what String writes.
func parseKept(s string) (*kept, error) {
	k := new(kept)
	atime, rest, _ := strings.Cut(s, " ")
	mtime, caps, hasCaps := strings.Cut(rest, " ")
	if _, err := fmt.Sscanf(atime+" "+mtime, "%d.%d %d.%d", &k.atime.Sec, &k.atime.Nsec, &k.mtime.Sec, &k.mtime.Nsec); err != nil {
		return nil, fmt.Errorf("%q are no times: %w", s, err)
	}
	if hasCaps {
		var err error
		if k.caps, err = hex.DecodeString(caps); err != nil {
			return nil, fmt.Errorf("%q is no capability: %w", caps, err)
		}
	}
	return k, nil
}

// mark writes k into its file's attribute.
func (u *Upper) mark(a at, k *kept) error { return u.setxattr(a, xattrFilling, []byte(k.String()), 0) }

// setTimes notes the times that a change has set; st has those that are "now".
func (k *kept) setTimes(set *SetAttr, st *unix.Statx_t) {
	switch {
	case set.Valid&SetAtimeNow != 0:
		k.atime = toTimespec(st.Atime)
	case set.Valid&SetAtime != 0:
		k.atime = set.Atime
	}
	switch {
	case set.Valid&SetMtimeNow != 0:
		k.mtime = toTimespec(st.Mtime)
	case set.Valid&SetMtime != 0:
		k.mtime = set.Mtime
	}
}

// fillData moves a regular file's data from the lower into its upper file, which
// becomes size bytes long unless size is noTruncate. A crash on the way leaves
// the data as it was: until xattrMetacopy goes, the lower's counts, and what is kept.
// Preconditions: n has an upper object; neither treeMu nor a node.mu is held.
func (fs *FS) fillData(n *node, size int64) error {
	if !n.metacopy.Load() {
		return nil
	}
	n.dataMu.Lock()
	defer n.dataMu.Unlock()
	if !n.metacopy.Load() {
		return nil
	}
	fs.treeMu.RLock()
	fd, err := fs.openUpper(n, unix.O_RDWR)
	fs.treeMu.RUnlock()
	if err != nil {
		return err
	}
	k, err := fs.beginFill(n, fd)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	err = fs.moveData(n, fd, size, k.size) // under dataMu alone: it can take seconds
	n.mu.Lock()
	defer n.mu.Unlock()
	if err = fs.endFillLocked(n, fd, err); err != nil {
		_ = unix.Close(fd)
		return err
	}
	if n.opens > 0 && n.file.Load() == nil {
		n.file.Store(&openFile{fd: fd, writable: true})
		return nil
	}
	return unix.Close(fd)
}

// beginFill notes what is to be kept.
func (fs *FS) beginFill(n *node, fd int) (*kept, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	u, a := fs.upper, at{fd, ""}
	var st unix.Statx_t
	if err := u.stat(a, &st); err != nil {
		return nil, err
	}
	if k := n.filling; k != nil { // an earlier move did not come to its end
		k.size = int64(st.Size)
		return k, nil
	}
	k := &kept{atime: toTimespec(st.Atime), mtime: toTimespec(st.Mtime), size: int64(st.Size)}
	if u.storedXattr(xattrCapability) == xattrCapability { // else writing drops nothing
		var err error
		k.caps, err = u.getxattr(a, xattrCapability)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, err
		}
	}
	if err := u.mark(a, k); err != nil {
		return nil, err
	}
	n.filling = k
	return k, nil
}

// moveData copies the data into a file that was so long, cuts it to size and makes it
// durable.
func (fs *FS) moveData(n *node, fd int, size, was int64) error {
	u := fs.upper
	src, err := fs.lower.Open(n.lower)
	if err != nil {
		return err
	}
	if size < 0 {
		size = src.Size()
	}
	limit := min(size, src.Size())
	if err := u.step("copy data"); err != nil {
		return err
	}
	if err := copyData(fd, src, limit); err != nil {
		return err
	}
	if size != was {
		if err := u.step("truncate"); err != nil {
			return err
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			return pathError("truncate", at{fd, ""}, err)
		}
	}
	if u.volatile || limit == 0 {
		return nil
	}
	return u.fsync(fd)
}

func (u *Upper) fsync(fd int) error {
	if err := u.step("fsync"); err != nil {
		return err
	}
	return syncFD(fd, false)
}

// endFillLocked restores what is kept and has the upper's data count, or takes it out
// again after moveErr. Preconditions: n.mu is held.
func (fs *FS) endFillLocked(n *node, fd int, moveErr error) error {
	u, a, k := fs.upper, at{fd, ""}, n.filling
	err := moveErr
	if err == nil {
		err = u.restoreKept(a, k)
	}
	if err != nil {
		// The disk may be full. The lower's data still counts, and what is kept.
		_ = unix.Ftruncate(fd, 0)
		_ = unix.Ftruncate(fd, k.size)
		if u.restoreKept(a, k) == nil && u.removexattr(a, xattrFilling) == nil {
			n.filling = nil
		}
		return err
	}
	if err := u.removexattr(a, xattrMetacopy); err != nil {
		return err // the upper's data counts, perhaps
	}
	n.filling = nil
	n.metacopy.Store(false)
	fs.table.fill(n.ino)
	// Where this fails, it says nothing: the file is no metacopy.
	_ = u.removexattr(a, xattrFilling)
	return nil
}

func (u *Upper) restoreKept(a at, k *kept) error {
	if len(k.caps) > 0 { // the copy has dropped them, as any write does
		if err := u.setxattr(a, xattrCapability, k.caps, 0); err != nil {
			return err
		}
	}
	return u.utimes(a, toUnix(k.atime), toUnix(k.mtime))
}

// copyChunk is how much is held in memory while data is copied up, in bytes.
const copyChunk = 1 << 20

// copyData copies n bytes. Data that lies uncompressed in a file is copied or
// shared by the kernel; zeros become holes, and holes stay.
func copyData(fd int, src layer.File, n int64) error {
	var buf []byte
	for off, end := int64(0), int64(0); off < n; {
		if off >= end {
			if off, end = src.Data(off); off >= n {
				return nil
			}
		}
		want := int(min(n-off, end-off, copyChunk))
		if done, err := copyDirect(fd, src, off, want); err != nil {
			return err
		} else if done > 0 {
			off += int64(done)
			continue
		}
		if buf == nil {
			buf = make([]byte, min(n, copyChunk))
		}
		got, err := src.ReadAt(buf[:want], off)
		if got < want && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if !allZero(buf[:want]) {
			if err := pwriteAll(fd, buf[:want], off); err != nil {
				return err
			}
		}
		off += int64(want)
	}
	return nil
}

// copyDirect copies within the kernel; 0 where that cannot be done.
func copyDirect(fd int, src layer.File, off int64, want int) (int, error) {
	from, fromOff, m, ok := src.Direct(off, want)
	if !ok || m <= 0 {
		return 0, nil
	}
	to := off
	n, err := unix.CopyFileRange(from, &fromOff, fd, &to, m, 0)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO):
		return 0, pathError("copy_file_range", at{}, err)
	}
	return 0, nil // not between these file systems
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if le64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := pwrite(fd, b, off)
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func pwrite(fd int, b []byte, off int64) (n int, err error) {
	err = retryEINTR(func() (err error) { n, err = unix.Pwrite(fd, b, off); return err })
	return max(n, 0), pathError("write", at{}, err)
}

// truncate sets a regular file's length. The host's truncate comes last, also where
// moving the data has set the length: it changes the times and drops capabilities.
// Preconditions as for fillData.
func (fs *FS) truncate(n *node, size int64) error {
	if err := fs.fillData(n, size); err != nil {
		return err
	}
	if f := n.holdFile(); f != nil {
		var err error
		if f.writable {
			if err = fs.upper.step("truncate"); err == nil {
				err = pathError("truncate", at{}, retryEINTR(func() error { return unix.Ftruncate(f.fd, size) }))
			}
		}
		if err = errors.Join(err, n.releaseFile()); err != nil || f.writable {
			return err
		}
	}
	fs.treeMu.RLock()
	fd, err := fs.openUpper(n, unix.O_WRONLY)
	fs.treeMu.RUnlock()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := fs.upper.step("truncate"); err != nil {
		return err
	}
	return pathError("truncate", at{}, retryEINTR(func() error { return unix.Ftruncate(fd, size) }))
}

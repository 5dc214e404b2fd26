package fusefs

import (
	"errors"
	"io"
	"io/fs"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// file is an open regular file.
type file struct {
	h  *overlay.Handle // immutable
	io openIO          // immutable
}

// openFile enters an open file and says how the kernel is to open it.
func (o *ops) openFile(h *overlay.Handle, flags uint32, out *fuse.OpenOut) *file {
	f := &file{h: h, io: o.io.open(h, flags, out)}
	out.Fh = o.files.add(f)
	return f
}

// fileUse is an open file while a request uses it.
type fileUse struct {
	*overlay.Handle
	node *nodeFile // nil: the kernel opened it
}

// use finds the open file that a request is for, to be given back with endUse. write
// says that the request changes it.
func (o *ops) use(fh, ino uint64, write bool) (fileUse, error) {
	if o.nodeFiles != nil {
		f, err := o.nodeFiles.get(overlay.Ino(ino), write)
		if o.madeRoom(err) {
			f, err = o.nodeFiles.get(overlay.Ino(ino), write)
		}
		if err != nil {
			return fileUse{}, err
		}
		return fileUse{f.h, f}, nil
	}
	f := o.files.get(fh)
	if f == nil {
		return fileUse{}, fs.ErrClosed
	}
	return fileUse{f.h, nil}, nil
}

// madeRoom closes the files that are open for the next request alone, where a request
// failed for want of descriptors: it can be tried again.
func (o *ops) madeRoom(err error) bool {
	if o.nodeFiles == nil || err == nil || !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
		return false
	}
	o.nodeFiles.closeAll()
	return true
}

func (o *ops) endUse(f fileUse) {
	if f.node != nil {
		o.nodeFiles.put(f.node)
	}
}

// Open opens a regular file, and empties it where O_TRUNC asks for it. Without
// passthrough there is nothing to decide at an open, and the kernel is told not to
// ask (nodefiles.go).
func (o *ops) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	o.stats.count(opOpen)
	if o.nodeFiles != nil {
		return fuse.ENOSYS
	}
	ino := overlay.Ino(in.NodeId)
	h, err := o.fs.Open(ino, in.Flags)
	if err != nil {
		return o.status(opOpen, in.NodeId, err)
	}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := o.dropPrivileges(ino, &in.InHeader); err != nil {
			return o.status(opOpen, in.NodeId, errors.Join(err, h.Close()))
		}
	}
	f := o.openFile(h, in.Flags, out)
	if f.io.maps {
		o.expireAttr(ino) // what it was told before is not valid from here on
	}
	return fuse.OK
}

func (o *ops) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	o.stats.count(opRelease)
	if f := o.files.remove(in.Fh); f != nil {
		o.closeFile(f)
	}
}

func (o *ops) closeFile(f *file) {
	o.io.release(f.io)
	ino := uint64(f.h.Ino())
	if err := f.h.Close(); err != nil {
		o.logFailure(opRelease, ino, err)
	}
}

// dropPrivileges takes the set-id bits from a file that one without the right to
// keep them writes to or empties (HANDLE_KILLPRIV_V2). The kernel does not expect
// its copy of the mode to change by that, so it is told.
func (o *ops) dropPrivileges(ino overlay.Ino, caller *fuse.InHeader) error {
	a, err := o.fs.GetAttr(ino)
	if err != nil || a.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return err
	}
	set := overlay.SetAttr{Valid: overlay.KillSuidgid}
	set.KeepSgid = keepsSgid(caller, set.Valid)
	if _, err := o.fs.SetAttr(ino, set); err != nil {
		return err
	}
	o.expireAttr(ino)
	return nil
}

func (o *ops) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	o.stats.count(opWrite)
	return o.write(in, data)
}

// Writev is Write with the data in pieces; it is what go-fuse calls.
func (o *ops) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	o.stats.count(opWrite)
	if len(data) == 1 {
		return o.write(in, data[0])
	}
	at, done := *in, uint32(0)
	for _, p := range data {
		n, st := o.write(&at, p)
		done += n
		if !st.Ok() && done == 0 {
			return 0, st
		}
		if int(n) < len(p) {
			break
		}
		at.Offset += uint64(n)
	}
	return done, fuse.OK
}

// write writes at the offset the kernel gives, also for O_APPEND: it holds the
// inode's lock from reading the size to our reply.
func (o *ops) write(in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f, err := o.use(in.Fh, in.NodeId, true)
	if err != nil {
		return 0, o.status(opWrite, in.NodeId, err)
	}
	defer o.endUse(f)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := o.dropPrivileges(f.Ino(), &in.InHeader); err != nil {
			return 0, o.status(opWrite, in.NodeId, err)
		}
	}
	n, err := f.WriteAt(data, int64(in.Offset))
	if err != nil && n == 0 {
		return 0, o.status(opWrite, in.NodeId, err)
	}
	return uint32(n), fuse.OK
}

// Flush is answered with ENOSYS on purpose: nothing waits for a close, as every
// WRITE went to the upper file, and the kernel then saves the request for the
// rest of the mount's life. It still writes back dirty mappings at close.
func (o *ops) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	o.stats.count(opFlush)
	return fuse.ENOSYS
}

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC: metadata may stay behind.
const fsyncDataOnly = 1

func (o *ops) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	o.stats.count(opFsync)
	f, err := o.use(in.Fh, in.NodeId, false)
	if err != nil {
		return o.status(opFsync, in.NodeId, err)
	}
	defer o.endUse(f)
	o.yield()
	return o.status(opFsync, in.NodeId, f.Sync(in.FsyncFlags&fsyncDataOnly != 0))
}

func (o *ops) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	o.stats.count(opFallocate)
	f, err := o.use(in.Fh, in.NodeId, true)
	if err != nil {
		return o.status(opFallocate, in.NodeId, err)
	}
	defer o.endUse(f)
	return o.status(opFallocate, in.NodeId, f.Allocate(in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek is asked for SEEK_DATA and SEEK_HOLE alone.
func (o *ops) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	o.stats.count(opLseek)
	f, err := o.use(in.Fh, in.NodeId, false)
	if err != nil {
		return o.status(opLseek, in.NodeId, err)
	}
	defer o.endUse(f)
	pos, err := f.Seek(int64(in.Offset), int(in.Whence))
	if err != nil {
		return o.status(opLseek, in.NodeId, err)
	}
	out.Offset = uint64(pos)
	return fuse.OK
}

// copyRangeMax bounds one copy_file_range in bytes: the caller waits for it with
// no chance to be interrupted. It comes again for the rest.
const copyRangeMax = 64 << 20

func (o *ops) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	o.stats.count(opCopyFileRange)
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	src, err := o.use(in.FhIn, in.NodeId, false)
	if err != nil {
		return 0, o.status(opCopyFileRange, in.NodeId, err)
	}
	defer o.endUse(src)
	dst, err := o.use(in.FhOut, in.NodeIdOut, true)
	if err != nil {
		return 0, o.status(opCopyFileRange, in.NodeIdOut, err)
	}
	defer o.endUse(dst)
	o.yield()
	n, err := src.CopyRange(int64(in.OffIn), dst.Handle, int64(in.OffOut), int64(min(in.Len, copyRangeMax)))
	if err != nil && n == 0 {
		return 0, o.status(opCopyFileRange, in.NodeId, err)
	}
	return uint32(n), fuse.OK
}

// Ioctl has nothing to offer. ENOTTY is what a file system without a certain
// ioctl answers; ENOSYS would do harm to lsattr and reflink probes.
func (o *ops) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	o.stats.count(opIoctl)
	return fuse.Status(unix.ENOTTY)
}

// Locks are the kernel's own: the capabilities that would send them here are not
// asked for, one kernel being all that can lock.

func (o *ops) GetLk(<-chan struct{}, *fuse.LkIn, *fuse.LkOut) fuse.Status {
	o.stats.count(opLock)
	return fuse.ENOSYS
}

func (o *ops) SetLk(<-chan struct{}, *fuse.LkIn) fuse.Status {
	o.stats.count(opLock)
	return fuse.ENOSYS
}

func (o *ops) SetLkw(<-chan struct{}, *fuse.LkIn) fuse.Status {
	o.stats.count(opLock)
	return fuse.ENOSYS
}

// Read reads data of a file that is not passed through.
func (o *ops) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	o.stats.count(opRead)
	f, err := o.use(in.Fh, in.NodeId, false)
	if err != nil {
		return nil, o.status(opRead, in.NodeId, err)
	}
	defer o.endUse(f)
	if f.Slow(int64(in.Offset), len(buf)) {
		o.yield()
	}
	var n int
	if in.Flags&unix.O_NOATIME == 0 {
		n, err = f.ReadAt(buf, int64(in.Offset))
	} else {
		n, err = f.ReadAtNoAtime(buf, int64(in.Offset))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		// Not what came before it: the kernel takes a short answer for the end of the
		// file (fuse_short_read). It asks again for the pages one by one.
		return nil, o.status(opRead, in.NodeId, err)
	}
	return newRead(buf[:n]), fuse.OK
}

package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// forever is how long the kernel may keep a name or attributes, in seconds: 68
// years. The kernel caps it in its own unit.
const forever = 1 << 31

// Widths of a device number in the kernel and on the wire (new_encode_dev in
// include/linux/kdev_t.h): 12 bits of major, 20 of minor. In them the encoding of
// struct stat agrees with the wire's.
const rdevMask = 1<<32 - 1

// fillAttr puts an inode's attributes in wire form.
func fillAttr(out *fuse.Attr, a *overlay.Attr) {
	out.Ino = uint64(a.Ino)
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Blocks)
	out.Atime, out.Atimensec = uint64(a.Atime.Sec), a.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(a.Ctime.Sec), a.Ctime.Nsec
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid = a.UID
	out.Gid = a.GID
	out.Rdev = uint32(a.Rdev & rdevMask)
	out.Blksize = a.Blksize
	out.Flags = 0
}

// fillEntry answers a request that looked up or made a name.
func (o *ops) fillEntry(out *fuse.EntryOut, a *overlay.Attr) {
	out.NodeId = uint64(a.Ino)
	out.Generation = 0
	out.EntryValid, out.EntryValidNsec = forever, 0
	out.AttrValid, out.AttrValidNsec = o.attrValid(a.Ino), 0
	fillAttr(&out.Attr, a)
}

// fillAttrOut answers GETATTR and SETATTR.
func (o *ops) fillAttrOut(out *fuse.AttrOut, a *overlay.Attr) {
	out.AttrValid, out.AttrValidNsec = o.attrValid(a.Ino), 0
	fillAttr(&out.Attr, a)
}

// fillStatx answers STATX, which asks for what fuse.Attr has no room for: the
// time of birth.
func (o *ops) fillStatx(out *fuse.StatxOut, a *overlay.Attr) {
	out.AttrValid, out.AttrValidNsec = o.attrValid(a.Ino), 0
	out.Statx = fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: a.Blksize, Nlink: a.Nlink,
		Uid: a.UID, Gid: a.GID, Mode: uint16(a.Mode), Ino: uint64(a.Ino),
		Size: uint64(a.Size), Blocks: uint64(a.Blocks),
		Atime: sxTime(a.Atime), Mtime: sxTime(a.Mtime), Ctime: sxTime(a.Ctime),
		RdevMajor: unix.Major(a.Rdev), RdevMinor: unix.Minor(a.Rdev),
	}
	if a.Btime != (overlay.Timespec{}) {
		out.Mask |= unix.STATX_BTIME
		out.Btime = sxTime(a.Btime)
	}
}

func sxTime(t overlay.Timespec) fuse.SxTime {
	return fuse.SxTime{Sec: uint64(t.Sec), Nsec: t.Nsec}
}

// attrValid is for how many seconds the kernel may keep an inode's attributes:
// for ever, unless the kernel lets processes map the upper file for writing, of
// which neither it nor we are told (docs/fuse.md, "Passthrough").
func (o *ops) attrValid(ino overlay.Ino) uint64 {
	if o.io.mapped(ino) {
		return 0
	}
	return forever
}

// setAttrOf is a SETATTR request as the overlay takes it.
//
// A request that names no field is how the kernel asks for the dropping of
// privileges before a write, when it leaves that to us (HANDLE_KILLPRIV_V2):
// fs/attr.c:notify_change wants the set-id bits cleared and
// fs/fuse/dir.c:fuse_setattr takes just that out of the request. Before a
// passthrough write nothing else says so.
func setAttrOf(in *fuse.SetAttrIn) overlay.SetAttr {
	set := overlay.SetAttr{
		Mode: in.Mode & 0o7777, UID: in.Uid, GID: in.Gid, Size: int64(in.Size),
		Atime: overlay.Timespec{Sec: int64(in.Atime), Nsec: in.Atimensec},
		Mtime: overlay.Timespec{Sec: int64(in.Mtime), Nsec: in.Mtimensec},
	}
	for _, f := range [...]struct {
		wire uint32
		mask overlay.SetattrMask
	}{
		{fuse.FATTR_MODE, overlay.SetMode},
		{fuse.FATTR_UID, overlay.SetUID},
		{fuse.FATTR_GID, overlay.SetGID},
		{fuse.FATTR_SIZE, overlay.SetSize},
		{fuse.FATTR_ATIME, overlay.SetAtime},
		{fuse.FATTR_MTIME, overlay.SetMtime},
		{fuse.FATTR_ATIME_NOW, overlay.SetAtimeNow},
		{fuse.FATTR_MTIME_NOW, overlay.SetMtimeNow},
		{fuse.FATTR_KILL_SUIDGID, overlay.KillSuidgid},
	} {
		if in.Valid&f.wire != 0 {
			set.Valid |= f.mask
		}
	}
	if set.Valid == 0 {
		set.Valid = overlay.KillSuidgid
	}
	return set
}

package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// Lookup finds a name. That there is none is cached as well: node 0 with a
// lifetime is a negative entry (fs/fuse/dir.c:fuse_lookup).
func (o *ops) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	o.stats.count(opLookup)
	o.listings.lookedUp(overlay.Ino(in.NodeId))
	a, err := o.fs.Lookup(overlay.Ino(in.NodeId), name)
	if err != nil {
		st := o.status(opLookup, in.NodeId, err)
		if st == fuse.ENOENT {
			out.EntryValid = forever
			return fuse.OK
		}
		return st
	}
	o.fillEntry(out, &a)
	return fuse.OK
}

// Forget takes back references that replies with an entry gave.
func (o *ops) Forget(nodeID, nlookup uint64) {
	o.stats.count(opForget)
	o.fs.Forget(overlay.Ino(nodeID), nlookup)
	if o.nodeFiles != nil {
		o.nodeFiles.drop(overlay.Ino(nodeID))
	}
}

func (o *ops) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	o.stats.count(opGetAttr)
	a, err := o.fs.GetAttr(overlay.Ino(in.NodeId))
	if err != nil {
		return o.status(opGetAttr, in.NodeId, err)
	}
	o.fillAttrOut(out, &a)
	return fuse.OK
}

func (o *ops) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	o.stats.count(opSetAttr)
	set := setAttrOf(in)
	set.KeepSgid = keepsSgid(&in.InHeader, set.Valid)
	a, err := o.fs.SetAttr(overlay.Ino(in.NodeId), set)
	if err != nil {
		return o.status(opSetAttr, in.NodeId, err)
	}
	o.fillAttrOut(out, &a)
	return fuse.OK
}

// Statx is asked where a time of birth is wanted.
func (o *ops) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	o.stats.count(opStatx)
	a, err := o.fs.GetAttr(overlay.Ino(in.NodeId))
	if err != nil {
		return o.status(opStatx, in.NodeId, err)
	}
	o.fillStatx(out, &a)
	return fuse.OK
}

func (o *ops) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	o.stats.count(opReadlink)
	target, err := o.fs.Readlink(overlay.Ino(in.NodeId))
	if err != nil {
		return nil, o.status(opReadlink, in.NodeId, err)
	}
	return []byte(target), fuse.OK
}

// Access is not asked with default_permissions. Without, the mount is for its
// owner alone and every access is granted: ENOSYS says so once for all.
func (o *ops) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status {
	o.stats.count(opAccess)
	return fuse.ENOSYS
}

func (o *ops) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	o.stats.count(opStatfs)
	st, err := o.fs.Statfs(overlay.Ino(in.NodeId))
	if err != nil {
		return o.status(opStatfs, in.NodeId, err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: st.Bsize, Frsize: st.Frsize, NameLen: st.NameLen,
	}
	return fuse.OK
}

package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// entry answers a request that made a name.
func (o *ops) entry(op opcode, dir uint64, a *overlay.Attr, err error, out *fuse.EntryOut) fuse.Status {
	o.nameChanges.Add(1)
	if err != nil {
		return o.status(op, dir, err)
	}
	o.fillEntry(out, a)
	return fuse.OK
}

func (o *ops) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	o.stats.count(opMkdir)
	a, err := o.fs.Mkdir(overlay.Ino(in.NodeId), name, in.Mode, o.callerOf(&in.InHeader, in.Umask))
	return o.entry(opMkdir, in.NodeId, &a, err, out)
}

func (o *ops) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	o.stats.count(opMknod)
	a, err := o.fs.Mknod(overlay.Ino(in.NodeId), name, in.Mode, uint64(in.Rdev), o.callerOf(&in.InHeader, in.Umask))
	return o.entry(opMknod, in.NodeId, &a, err, out)
}

func (o *ops) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	o.stats.count(opSymlink)
	a, err := o.fs.Symlink(overlay.Ino(in.NodeId), name, target, o.callerOf(in, 0))
	return o.entry(opSymlink, in.NodeId, &a, err, out)
}

func (o *ops) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	o.stats.count(opLink)
	a, err := o.fs.Link(overlay.Ino(in.Oldnodeid), overlay.Ino(in.NodeId), name)
	return o.entry(opLink, in.NodeId, &a, err, out)
}

func (o *ops) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	o.stats.count(opUnlink)
	err := o.fs.Unlink(overlay.Ino(in.NodeId), name)
	o.nameChanges.Add(1)
	return o.status(opUnlink, in.NodeId, err)
}

func (o *ops) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	o.stats.count(opRmdir)
	err := o.fs.Rmdir(overlay.Ino(in.NodeId), name)
	o.nameChanges.Add(1)
	return o.status(opRmdir, in.NodeId, err)
}

// Rename serves RENAME, whose flags are 0, and RENAME2.
func (o *ops) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	o.stats.count(opRename)
	err := o.fs.Rename(overlay.Ino(in.NodeId), oldName, overlay.Ino(in.Newdir), newName, in.Flags)
	o.nameChanges.Add(1)
	return o.status(opRename, in.NodeId, err)
}

// Create makes a file and opens it.
func (o *ops) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	o.stats.count(opCreate)
	defer o.nameChanges.Add(1)
	return o.create(opCreate, in, out, func() (*overlay.Handle, overlay.Attr, error) {
		return o.fs.Create(overlay.Ino(in.NodeId), name, in.Flags, in.Mode, o.callerOf(&in.InHeader, in.Umask))
	})
}

// Tmpfile makes and opens a file that no directory has a name for (O_TMPFILE).
func (o *ops) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	o.stats.count(opTmpfile)
	return o.create(opTmpfile, in, out, func() (*overlay.Handle, overlay.Attr, error) {
		return o.fs.Tmpfile(overlay.Ino(in.NodeId), in.Flags, in.Mode, o.callerOf(&in.InHeader, in.Umask))
	})
}

// create answers a request that makes and opens a file. Its attributes are valid
// for ever even where it may be mapped for writing: of an empty file there is
// nothing to map, and what makes it longer makes the kernel ask again.
func (o *ops) create(op opcode, in *fuse.CreateIn, out *fuse.CreateOut, once func() (*overlay.Handle, overlay.Attr, error)) fuse.Status {
	h, a, err := once()
	if o.madeRoom(err) {
		h, a, err = once()
	}
	if err != nil {
		return o.status(op, in.NodeId, err)
	}
	if o.nodeFiles != nil {
		// No number: the kernel will not tell of the end (fuse_file_put with no_open).
		o.nodeFiles.put(o.nodeFiles.add(h, true))
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	} else {
		o.openFile(h, in.Flags&^unix.O_CREAT, &out.OpenOut)
	}
	o.fillEntry(&out.EntryOut, &a)
	out.AttrValid = forever
	return fuse.OK
}

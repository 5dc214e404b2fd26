package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// GetXAttr reads an extended attribute, or its size into an empty buffer.
func (o *ops) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, buf []byte) (uint32, fuse.Status) {
	o.stats.count(opGetXattr)
	n, err := o.fs.GetXattr(overlay.Ino(in.NodeId), name, buf)
	if err != nil {
		return 0, o.status(opGetXattr, in.NodeId, err)
	}
	return uint32(n), fuse.OK
}

// ListXAttr lists names, each with a NUL, or their size into an empty buffer. The kernel
// refuses trusted.* to those without CAP_SYS_ADMIN, but leaves it to file systems to hide
// the names (simple_xattr_list and ext4_xattr_trusted_list in the kernel).
func (o *ops) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, buf []byte) (uint32, fuse.Status) {
	o.stats.count(opListXattr)
	n, err := o.fs.ListXattr(overlay.Ino(in.NodeId), buf, func() bool {
		c, err := sys.ReadCredentials(int(in.Pid))
		return err == nil && c.Has(unix.CAP_SYS_ADMIN)
	})
	if err != nil {
		return 0, o.status(opListXattr, in.NodeId, err)
	}
	return uint32(n), fuse.OK
}

// SetXAttr sets an extended attribute. Setting an access ACL changes the mode; the
// kernel knows, but not where it leaves ACLs to us (docs/fuse.md, POSIX_ACL).
func (o *ops) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	o.stats.count(opSetXattr)
	killSgid := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	err := o.fs.SetXattr(overlay.Ino(in.NodeId), name, value, in.Flags, killSgid)
	if err == nil && name == "system.posix_acl_access" {
		o.expireAttr(overlay.Ino(in.NodeId))
	}
	return o.status(opSetXattr, in.NodeId, err)
}

func (o *ops) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	o.stats.count(opRemoveXattr)
	return o.status(opRemoveXattr, in.NodeId, o.fs.RemoveXattr(overlay.Ino(in.NodeId), name))
}

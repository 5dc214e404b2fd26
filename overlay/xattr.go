package overlay

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of setxattr(2) and listxattr(2) in bytes (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const (
	xattrSizeMax = 64 << 10
	xattrListMax = 64 << 10
)

// xattrCapability is asked for before the first write to a file, by the kernel
// (cap_inode_need_killpriv).
const xattrCapability = "security.capability"

// checkXattrName refuses the names that no local disk takes, in the words of
// xattr_resolve_name (fs/xattr.c): ErrInvalid for a namespace alone, ErrUnsupported for
// a name in none.
func checkXattrName(name string) error {
	for _, namespace := range [...]string{"user.", "trusted.", "security."} {
		if rest, ok := strings.CutPrefix(name, namespace); ok {
			if rest == "" {
				return ErrInvalid
			}
			return nil
		}
	}
	if name == "system.posix_acl_access" || name == "system.posix_acl_default" {
		return nil
	}
	return ErrUnsupported
}

// upperNode is the node of an inode that has an upper object; nil: lower alone.
// Preconditions: treeMu is held.
func (fs *FS) upperNode(ino Ino) (*node, error) {
	n, touched := fs.table.get(ino)
	if n == nil && touched {
		var err error
		if n, err = fs.node(ino, false); err != nil {
			return nil, err
		}
	}
	switch {
	case n != nil && n.upper.Load():
		return n, nil
	case n == nil && !isLower(ino):
		return nil, ErrStale
	}
	return nil, nil
}

// GetXattr reads an extended attribute into buf and returns its size; with an
// empty buf the size alone. ErrNoXattr, ErrRange.
func (fs *FS) GetXattr(ino Ino, name string, buf []byte) (int, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	if fs.presents(name) {
		return fs.getRootlessOwner(ino, buf)
	}
	n, err := fs.upperNode(ino)
	if err != nil {
		return 0, err
	}
	if n == nil {
		for have, value := range fs.lower.Xattrs(ino) {
			if have == name {
				return fill(buf, value)
			}
		}
		if err := checkXattrName(name); err != nil {
			return 0, err
		}
		return 0, ErrNoXattr
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.noCaps && name == xattrCapability {
		return 0, ErrNoXattr
	}
	if k := fs.keptCapsLocked(n, name); k != nil {
		if k.caps == nil {
			return 0, ErrNoXattr
		}
		return fill(buf, k.caps)
	}
	p, err := fs.reachLocked(n)
	if err != nil {
		return 0, err
	}
	defer fs.put(p)
	got, err := fs.upper.getxattrInto(p.at, fs.upper.storedXattr(name), buf)
	if err != nil {
		if err := checkXattrName(name); err != nil {
			return 0, err
		}
	}
	switch {
	case errors.Is(err, unix.ENODATA):
		n.noCaps = n.noCaps || name == xattrCapability
		return 0, ErrNoXattr
	case errors.Is(err, unix.ERANGE):
		return 0, ErrRange
	}
	return got, err
}

// fill copies value into buf, where there is one.
func fill(buf, value []byte) (int, error) {
	if len(buf) > 0 && len(buf) < len(value) {
		return 0, ErrRange
	}
	copy(buf, value)
	return len(value), nil
}

// ListXattr writes the NUL-terminated names into buf and returns their size; with
// an empty buf the size alone. Names of trusted.* are shown to callers for whom mayTrust
// holds, or nil is given; it is asked where there are any. ErrRange.
func (fs *FS) ListXattr(ino Ino, buf []byte, mayTrust func() bool) (int, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	names, err := fs.xattrNames(ino)
	if err != nil {
		return 0, err
	}
	if mayTrust != nil && slices.ContainsFunc(names, isTrusted) && !mayTrust() {
		names = slices.DeleteFunc(names, isTrusted)
	}
	var list []byte
	for _, name := range names {
		if !fs.presents(name) {
			list = append(append(list, name...), 0)
		}
	}
	if fs.squash != nil {
		owner, err := fs.rootlessOwner(ino)
		if err != nil {
			return 0, err
		}
		if len(owner) > 0 {
			list = append(append(list, XattrRootless...), 0)
		}
	}
	if len(list) > xattrListMax {
		return 0, pathError("listxattr", at{}, unix.E2BIG)
	}
	return fill(buf, list)
}

func isTrusted(name string) bool { return strings.HasPrefix(name, "trusted.") }

// xattrNames lists the names of the view. Preconditions: treeMu is held.
func (fs *FS) xattrNames(ino Ino) ([]string, error) {
	n, err := fs.upperNode(ino)
	if err != nil {
		return nil, err
	}
	var names []string
	if n == nil {
		for name := range fs.lower.Xattrs(ino) {
			names = append(names, name)
		}
		return names, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := fs.reachLocked(n)
	if err != nil {
		return nil, err
	}
	defer fs.put(p)
	list, err := fs.upper.listxattr(p.at)
	if err != nil {
		return nil, err
	}
	for _, stored := range splitNames(list) {
		if name, ok := fs.upper.viewXattr(stored); ok {
			names = append(names, name)
		}
	}
	if k := fs.keptCapsLocked(n, xattrCapability); k != nil {
		names = slices.DeleteFunc(names, func(name string) bool { return name == xattrCapability })
		if k.caps != nil {
			names = append(names, xattrCapability)
		}
	}
	return names, nil
}

// keptCapsLocked is what has an attribute in place of a file that its data is being
// moved into; nil: the file itself. Preconditions: n.mu is held.
func (fs *FS) keptCapsLocked(n *node, name string) *kept {
	if n.filling == nil || fs.upper.storedXattr(name) != xattrCapability {
		return nil
	}
	return n.filling
}

// setKeptCapsLocked is SetXattr, or without value RemoveXattr, of the capability that k
// has, and which value then belongs to. Preconditions: the node's mu is held.
func (fs *FS) setKeptCapsLocked(k *kept, a at, value []byte, flags int) error {
	switch {
	case flags&unix.XATTR_CREATE != 0 && k.caps != nil:
		return pathError("setxattr "+xattrCapability, a, unix.EEXIST)
	case flags&unix.XATTR_REPLACE != 0 && k.caps == nil, value == nil && k.caps == nil:
		return ErrNoXattr
	}
	var err error
	if value == nil {
		err = fs.upper.dropCapabilities(a)
	} else {
		err = fs.upper.setxattr(a, xattrCapability, value, 0)
	}
	if err != nil {
		return err
	}
	k.caps = value
	return fs.upper.mark(a, k)
}

// SetXattr sets an extended attribute; flags are unix.XATTR_CREATE and
// XATTR_REPLACE. killSgid drops the set-group-id bit, as setting an ACL by one
// outside the group does (FUSE_SETXATTR_ACL_KILL_SGID).
func (fs *FS) SetXattr(ino Ino, name string, value []byte, flags uint32, killSgid bool) error {
	if len(value) > xattrSizeMax {
		return pathError("setxattr", at{}, unix.E2BIG)
	}
	if err := checkXattrName(name); err != nil {
		return err
	}
	if fs.presents(name) {
		return fs.setRootlessOwner(ino, value, flags)
	}
	return fs.changeXattr(ino, name, func(n *node, a at) error {
		if k := fs.keptCapsLocked(n, name); k != nil {
			return fs.setKeptCapsLocked(k, a, append([]byte{}, value...), int(flags))
		}
		err := fs.upper.setxattr(a, fs.upper.storedXattr(name), value, int(flags))
		if errors.Is(err, unix.ENODATA) {
			return ErrNoXattr
		}
		if err == nil && name == xattrACLAccess && fs.upper.rootless {
			err = fs.applyACLModeLocked(n, a, value)
		}
		if err != nil || !killSgid {
			return err
		}
		return fs.dropSgidLocked(n, a)
	})
}

// RemoveXattr removes an extended attribute. ErrNoXattr.
func (fs *FS) RemoveXattr(ino Ino, name string) error {
	if _, err := fs.GetXattr(ino, name, nil); err != nil {
		return err
	}
	if fs.presents(name) {
		return fs.setRootlessOwner(ino, nil, 0)
	}
	return fs.changeXattr(ino, name, func(n *node, a at) error {
		if k := fs.keptCapsLocked(n, name); k != nil {
			return fs.setKeptCapsLocked(k, a, nil, 0)
		}
		err := fs.upper.removexattr(a, fs.upper.storedXattr(name))
		if errors.Is(err, unix.ENODATA) {
			return ErrNoXattr
		}
		return err
	})
}

// changeXattr copies an inode up and lets f change its attributes, with the
// inode's lock held.
func (fs *FS) changeXattr(ino Ino, name string, f func(n *node, a at) error) error {
	if err := fs.change(); err != nil {
		return err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	n, err := fs.node(ino, true)
	if err != nil {
		return err
	}
	defer fs.unref(n)
	if err := fs.copyUp(n); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := fs.reachLocked(n)
	if err != nil {
		return err
	}
	defer fs.put(p)
	n.noCaps = n.noCaps && name != xattrCapability
	n.ctime = keptCtime{}
	if err := f(n, p.at); err != nil {
		return err
	}
	if strings.HasPrefix(name, "system.") {
		n.inherit = nil
	}
	return nil
}

// applyACLModeLocked gives a plain user's object the mode that its ACL says: elsewhere the
// upper's file system does. Preconditions: treeMu and n.mu are held.
func (fs *FS) applyACLModeLocked(n *node, a at, acl []byte) error {
	was := uint32(0)
	if n.over != nil {
		was = n.over.mode
	} else {
		var st unix.Statx_t
		if err := fs.upper.stat(a, &st); err != nil {
			return err
		}
		was = uint32(st.Mode)
	}
	return fs.setOwnerModeLocked(n, a, &SetAttr{Valid: SetMode, Mode: aclMode(acl, was) & 0o7777})
}

// dropSgidLocked clears the set-group-id bit. Preconditions: treeMu and n.mu are held.
func (fs *FS) dropSgidLocked(n *node, a at) error {
	cur, err := fs.nodeAttrLocked(n)
	if err != nil || cur.Mode&unix.S_ISGID == 0 {
		return err
	}
	return fs.setOwnerModeLocked(n, a, &SetAttr{Valid: SetMode, Mode: cur.Mode &^ unix.S_ISGID & 0o7777})
}

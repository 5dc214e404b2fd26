package overlay

import "encoding/binary"

// The binary form of a POSIX ACL in system.posix_acl_access and _default
// (include/uapi/linux/posix_acl_xattr.h): a little-endian u32 version 2, then
// entries of u16 tag, u16 perm, u32 id.
const (
	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"

	aclVersion    = 2
	aclHeaderSize = 4
	aclEntrySize  = 8

	aclUserObj  = 0x01
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclMode is a mode with the permission bits that an access ACL says, as the kernel's
// posix_acl_update_mode has them; as it was for what is no ACL.
func aclMode(acl []byte, mode uint32) uint32 {
	if len(acl) < aclHeaderSize || (len(acl)-aclHeaderSize)%aclEntrySize != 0 {
		return mode
	}
	masked := false
	for off := aclHeaderSize; off < len(acl); off += aclEntrySize {
		perm := uint32(binary.LittleEndian.Uint16(acl[off+2:])) & 7
		switch tag := binary.LittleEndian.Uint16(acl[off:]); {
		case tag == aclUserObj:
			mode = mode&^0o700 | perm<<6
		case tag == aclMask, tag == aclGroupObj && !masked:
			mode = mode&^0o070 | perm<<3
			masked = tag == aclMask
		case tag == aclOther:
			mode = mode&^0o007 | perm
		}
	}
	return mode
}

// inheritACL applies a directory's default ACL to an object made in it with
// mode, as the kernel's posix_acl_create does: the permission bits are limited
// by the ACL's and the ACL's by them. access is nil where the bits say it all.
// ok is false for an ACL that is no ACL, which is then treated as absent.
func inheritACL(def []byte, mode uint32) (access []byte, newMode uint32, ok bool) {
	if len(def) < aclHeaderSize || (len(def)-aclHeaderSize)%aclEntrySize != 0 ||
		binary.LittleEndian.Uint32(def) != aclVersion {
		return nil, mode, false
	}
	acl := append([]byte(nil), def...)
	var group, mask []byte
	extended := false
	perm := mode & 0o777
	for off := aclHeaderSize; off < len(acl); off += aclEntrySize {
		e := acl[off : off+aclEntrySize]
		switch binary.LittleEndian.Uint16(e) {
		case aclUserObj:
			perm = limitClass(e, perm, 6)
		case aclOther:
			perm = limitClass(e, perm, 0)
		case aclGroupObj:
			group = e
		case aclMask:
			mask, extended = e, true
		default:
			extended = true
		}
	}
	switch {
	case mask != nil:
		perm = limitClass(mask, perm, 3)
	case group != nil:
		perm = limitClass(group, perm, 3)
	default:
		return nil, mode, false
	}
	newMode = mode&^0o777 | perm
	if !extended {
		return nil, newMode, true
	}
	return acl, newMode, true
}

// limitClass reduces an entry's permissions and the mode's class at shift to
// what both allow, and returns the mode.
func limitClass(entry []byte, perm uint32, shift uint) uint32 {
	have := uint32(binary.LittleEndian.Uint16(entry[2:]))
	both := have & (perm >> shift) & 7
	binary.LittleEndian.PutUint16(entry[2:], uint16(both))
	return perm&^(7<<shift) | both<<shift
}

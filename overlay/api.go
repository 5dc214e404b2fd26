package overlay

import "github.com/umoci-mount/umoci-mount/layer"

// Timespec is a point in time; see layer.Timespec.
type Timespec = layer.Timespec

// Attr is an inode's struct stat.
type Attr struct {
	Ino     Ino
	Mode    uint32 // S_IFMT type bits and the low twelve permission bits
	Nlink   uint32
	UID     uint32
	GID     uint32
	Rdev    uint64 // encoding of struct stat (unix.Mkdev)
	Size    int64  // bytes
	Blocks  int64  // 512-byte units
	Blksize uint32
	Atime   Timespec
	Mtime   Timespec
	Ctime   Timespec
	Btime   Timespec // zero where unknown
	Image   Owner    // in the image's ids, of which UID and GID are what the view shows
}

// Caller is who asks for an object to be created.
type Caller struct {
	UID   uint32
	GID   uint32
	Umask uint32 // not applied where the parent has a default ACL (acl(5))

	ImageIDs bool // UID and GID are the image's, not those of the view
}

// SetattrMask says which fields of a SetAttr count.
type SetattrMask uint32

// The fields of a SetAttr.
const (
	SetMode SetattrMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
	// KillSuidgid drops suid and security.capability, and sgid of files that their
	// group executes or whose caller may not keep it (SetAttr.KeepSgid), as a write
	// or truncate by an unprivileged caller does (FATTR_KILL_SUIDGID).
	KillSuidgid
)

// SetAttr is a change of an inode's attributes.
type SetAttr struct {
	Valid    SetattrMask
	Mode     uint32 // permission bits
	UID      uint32
	GID      uint32
	ImageIDs bool // UID and GID are the image's, not those of the view
	Size     int64
	Atime    Timespec
	Mtime    Timespec

	// KeepSgid reports whether the caller, who writes to a file or changes its owner,
	// may keep the sgid bit that means nothing to those who run it, as no group may:
	// who is of the file's group may, which is given in the view's ids
	// (setattr_should_drop_sgid in the kernel). nil: the caller may.
	KeepSgid func(gid uint32) bool
}

// Statfs is the state of the file system that holds the upper directory; all
// counts in units of Frsize bytes.
type Statfs struct {
	Bsize   uint32
	Frsize  uint32
	Blocks  uint64
	Bfree   uint64
	Bavail  uint64
	Files   uint64
	Ffree   uint64
	NameLen uint32
}

package fusefs

import "sync/atomic"

// opcode is a kind of request, for counting and for messages.
type opcode uint8

const (
	opLookup opcode = iota
	opForget
	opGetAttr
	opSetAttr
	opStatx
	opReadlink
	opSymlink
	opMknod
	opMkdir
	opUnlink
	opRmdir
	opRename
	opLink
	opCreate
	opTmpfile
	opOpen
	opRead
	opWrite
	opFlush
	opRelease
	opFsync
	opFallocate
	opLseek
	opCopyFileRange
	opIoctl
	opOpenDir
	opReadDir
	opReadDirPlus
	opReleaseDir
	opFsyncDir
	opGetXattr
	opListXattr
	opSetXattr
	opRemoveXattr
	opStatfs
	opAccess
	opLock
	opcodes // how many there are
)

// opcodeNames are those of the kernel's enum fuse_opcode.
var opcodeNames = [opcodes]string{
	opLookup: "LOOKUP", opForget: "FORGET", opGetAttr: "GETATTR", opSetAttr: "SETATTR", opStatx: "STATX",
	opReadlink: "READLINK", opSymlink: "SYMLINK", opMknod: "MKNOD", opMkdir: "MKDIR", opUnlink: "UNLINK",
	opRmdir: "RMDIR", opRename: "RENAME", opLink: "LINK", opCreate: "CREATE", opTmpfile: "TMPFILE",
	opOpen: "OPEN", opRead: "READ", opWrite: "WRITE", opFlush: "FLUSH", opRelease: "RELEASE", opFsync: "FSYNC",
	opFallocate: "FALLOCATE", opLseek: "LSEEK", opCopyFileRange: "COPY_FILE_RANGE", opIoctl: "IOCTL",
	opOpenDir: "OPENDIR", opReadDir: "READDIR", opReadDirPlus: "READDIRPLUS", opReleaseDir: "RELEASEDIR",
	opFsyncDir: "FSYNCDIR", opGetXattr: "GETXATTR", opListXattr: "LISTXATTR", opSetXattr: "SETXATTR",
	opRemoveXattr: "REMOVEXATTR", opStatfs: "STATFS", opAccess: "ACCESS", opLock: "LOCK",
}

func (op opcode) String() string { return opcodeNames[op] }

// stats counts requests by kind.
type stats struct {
	kinds [opcodes]atomic.Uint64
}

func (s *stats) count(op opcode) { s.kinds[op].Add(1) }

// snapshot is the counters that are not zero, by name.
func (s *stats) snapshot() map[string]uint64 {
	out := make(map[string]uint64, opcodes)
	for op := range s.kinds {
		if n := s.kinds[op].Load(); n != 0 {
			out[opcodeNames[op]] = n
		}
	}
	return out
}

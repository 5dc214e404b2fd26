package layer

// Ino is the number of an inode of a merged tree: its row in the tree file plus
// one. The root is 1. A number is a pure function of the ordered layers and the
// format's version, so it never changes while an image keeps its layers.
type Ino uint64

// InoLimit is above every number of a tree, and above every place in a directory. It
// leaves two bits of 32 to who numbers more than a tree's inodes (32-bit programs).
const InoLimit Ino = maxMerge + 16

// RootIno is the inode number of every tree's root directory.
const RootIno Ino = 1

// Timespec is a point in time: seconds since the Unix epoch (negative before
// it) and nanoseconds in [0, 1e9).
type Timespec struct {
	Sec  int64
	Nsec uint32
}

// Attr is what a tree holds of one inode, in the image's own ids.
type Attr struct {
	Ino   Ino
	Mode  uint32 // S_IFMT type bits and the low twelve permission bits, as in struct stat
	UID   uint32
	GID   uint32
	Nlink uint32 // directories: 2 + subdirectories; others: names in the merged tree
	Rdev  uint64 // device number in the encoding of struct stat (unix.Mkdev); 0 for other types
	Size  int64  // bytes; a symlink's is the length of its target, a directory's is DirSize
	// Blocks is what a regular file takes, in units of 512 bytes: of a file with holes
	// the blocks of BlockSize that have data. What the layer has no hole for is data.
	Blocks int64
	Mtime  Timespec
}

// DirSize is the st_size of every directory, in bytes: what ext4 shows for a
// small directory, so that mtree manifests agree with extracted trees.
const DirSize = 4096

// BlockSize is the unit of holes, in bytes, as on ext4: a block that has data is data.
const BlockSize = 4096

// Dirent is one name in a directory.
type Dirent struct {
	Name string
	Ino  Ino
	Mode uint32 // S_IFMT type bits only
}

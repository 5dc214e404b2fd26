// Package overlay is the union of one immutable lower tree and one upper
// directory, with the semantics of a local file system. It knows nothing of
// FUSE: it can be driven in-process, with no mount.
//
//	       view                    a name in a directory is looked up
//	  ┌──────┴──────┐              in the upper first: an object there wins,
//	upper         lower            a whiteout hides the lower's, and only a
//	directory     tree (Lower)     directory that is not opaque merges both.
//
// The upper directory is in overlayfs' on-disk format with the user.overlay.*
// names of its userxattr mode; docs/upper-format.md has the bytes, and the changes
// of several steps. A crash leaves the old state or the new one, and debris in work/
// alone:
//
//   - What takes more than one system call is prepared in the work directory and
//     published by one rename: copies, objects with an owner, attributes or a whiteout
//     in their place, whiteouts over something, directories that hold whiteouts.
//   - What takes one is done in place: an object that the creating call makes whole, a
//     link or a whiteout at a free name, unlink and rmdir of what is the upper's alone,
//     a rename. So are owner, mode, times and attributes of an upper object, one after
//     another where a request sets several.
//
// # Inodes
//
// A number is the lower tree's for everything that began there, also after
// copy-up, rename and remount; else it is made from the upper's st_ino (ino.go).
// An object that is lower alone has no node: it is answered from the tree. A
// node exists for what has an upper object, is open, or was unlinked while the
// kernel still knows it (table.go).
//
// # Copy-up
//
// A change of metadata copies metadata (a "metacopy": the upper file is sparse
// and its data is still the lower's); the first change of data fills it in
// place. All names of an inode with several move at once, as hard links.
// A renamed directory records where its lower content is, and copies nothing.
//
// # Lock order
//
//	FS.freezeMu              R: every change; W: Freeze
//	  node.dataMu            one at a time: moves a file's data
//	    FS.treeMu            R: every operation on names; W: Rename
//	      FS.movedMu         the search for directories moved earlier
//	      node.copyMu        one at a time: copy-up of metadata
//	        node.mu          parent before child; of two files never both
//	          FS.table.mu    leaf
//	          dirFDs.mu      leaf
//	          Upper.whiteoutMu leaf
//
// Reads and writes of an open file's data take freezeMu alone (reads: nothing).
//
// A function that needs a node.mu, or a leaf, held ends in Locked. For a directory's
// node.mu treeMu.W will do. Exempt are treeMu itself, which most functions need and
// their comments name, and the steps of a creation or a removal (create.go, remove.go),
// which hold their directory's.
package overlay

// Package extract writes the merged tree of an image into a directory: for machines
// without FUSE, and for tools that want the files themselves.
//
//	plan        every inode is looked at: owners are mapped, files sorted by where
//	            their content lies in the layers
//	dirs        directories, from the top, with mode 0700
//	nodes       files, symlinks, devices, by several goroutines; files in batches in
//	            the order of their content, so that each span of a layer is decoded once
//	links       the other names of inodes that have several
//	finish      directories get their attributes, from the bottom
//
// # Safety
//
// A tree holds only names, directories and inodes: what a hostile tar said with
// "..", absolute names or links was settled when the layers were merged, inside the
// image's root. Here it cannot matter either. A name that is not one path component
// is refused; a directory is reached from the root by its names, one openat(2) with
// O_NOFOLLOW each; files are made with O_EXCL and O_NOFOLLOW; everything else is
// done by descriptor, or by name in a directory's descriptor with no link followed.
// So no symlink is ever followed, whoever made it. Until the end the directories
// have mode 0700, and nobody else can look in or step between.
//
// # What stays
//
// When Tree fails, or its context ends, it takes away what it has made. In a
// directory that was there before, what it replaced is lost, as with tar(1).
package extract

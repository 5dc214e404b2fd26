// Package imagetest is what tests of images and mounts share: a maker of OCI
// image-layouts, comparable listings of directory trees, and a runner of the
// umoci-mount program that leaves nothing behind.
//
// It uses none of the project's own packages: the images are written with
// archive/tar, compress/gzip and JSON structs alone, and the program runs in
// processes of its own. So what it finds right or wrong does not depend on the
// code under test.
//
// # The language of layers
//
// A layer is text, one entry a line; blank lines and lines that begin with # are
// skipped. A field with blanks in it, or with any byte that needs escaping, is a
// Go string literal.
//
//	dir      PATH MODE            [OPTION…]
//	file     PATH MODE CONTENT    [OPTION…]   CONTENT: "literal", or @SIZE for that many bytes, fixed by the path
//	symlink  PATH TARGET          [OPTION…]
//	hardlink PATH TARGET
//	fifo     PATH MODE            [OPTION…]
//	char     PATH MODE MAJOR,MINOR [OPTION…]
//	block    PATH MODE MAJOR,MINOR [OPTION…]
//	whiteout PATH                             the marker PATH/../.wh.NAME
//	opaque   DIR                              the marker DIR/.wh..wh..opq
//
// Options are uid=N, gid=N, mtime=SECONDS[.NANOSECONDS] and xattr:NAME=VALUE.
// Without them an entry belongs to root and was changed at DefaultTime.
package imagetest

package fusefs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// memLower is a lower tree in memory.
type memLower struct {
	inodes []memInode // by Ino-1
	paths  map[string]overlay.Ino
}

type memInode struct {
	attr    layer.Attr
	names   []memName
	entries []layer.Dirent // of a directory, sorted
	target  string
	data    []byte
	fd      *os.File // where set, data lies there from offset fdOffset
	xattrs  [][2]string
	hole    int64 // how much of data, at the start
	damaged bool  // reads are a *layer.CorruptError
}

type memName struct {
	dir  overlay.Ino
	name string
}

// fdOffset is where the data of a file with a descriptor starts in it.
const fdOffset = 512

var fixtureTime = layer.Timespec{Sec: 1_600_000_000, Nsec: 123456789}

func newLower() *memLower {
	l := &memLower{paths: map[string]overlay.Ino{}}
	l.inodes = append(l.inodes, memInode{attr: layer.Attr{
		Ino: layer.RootIno, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Size: layer.DirSize, Mtime: fixtureTime,
	}})
	l.paths["."] = layer.RootIno
	return l
}

func (l *memLower) inode(ino overlay.Ino) (*memInode, error) {
	if ino < 1 || int(ino) > len(l.inodes) {
		return nil, fmt.Errorf("inode %d: %w", ino, fs.ErrNotExist)
	}
	return &l.inodes[ino-1], nil
}

// add enters an object under a path whose parent is there.
func (l *memLower) add(p string, in memInode) *memInode {
	in.attr.Ino = overlay.Ino(len(l.inodes) + 1)
	if in.attr.Nlink == 0 {
		in.attr.Nlink = 1
	}
	in.attr.Mtime = fixtureTime
	l.inodes = append(l.inodes, in)
	l.link(p, in.attr.Ino)
	return &l.inodes[in.attr.Ino-1]
}

func (l *memLower) link(p string, ino overlay.Ino) {
	parent, ok := l.paths[path.Dir(p)]
	if !ok {
		panic("no parent of " + p)
	}
	in := &l.inodes[ino-1]
	in.names = append(in.names, memName{parent, path.Base(p)})
	dir := &l.inodes[parent-1]
	at, _ := slices.BinarySearchFunc(dir.entries, path.Base(p), func(e layer.Dirent, name string) int {
		return strings.Compare(e.Name, name)
	})
	dir.entries = slices.Insert(dir.entries, at, layer.Dirent{Name: path.Base(p), Ino: ino, Mode: in.attr.Mode & unix.S_IFMT})
	l.paths[p] = ino
}

func (l *memLower) dir(p string, mode uint32) {
	l.add(p, memInode{attr: layer.Attr{Mode: unix.S_IFDIR | mode, Nlink: 2, Size: layer.DirSize}})
	l.inodes[l.paths[path.Dir(p)]-1].attr.Nlink++
}

func (l *memLower) file(p string, mode uint32, data []byte) *memInode {
	size := int64(len(data))
	return l.add(p, memInode{attr: layer.Attr{Mode: unix.S_IFREG | mode, Size: size, Blocks: (size + 511) / 512}, data: data})
}

func (l *memLower) symlink(p, target string) {
	l.add(p, memInode{attr: layer.Attr{Mode: unix.S_IFLNK | 0o777, Size: int64(len(target))}, target: target})
}

func (l *memLower) hardlink(p, to string) {
	ino := l.paths[to]
	l.inodes[ino-1].attr.Nlink++
	l.link(p, ino)
}

func (l *memLower) Attr(ino overlay.Ino) (layer.Attr, error) {
	in, err := l.inode(ino)
	if err != nil {
		return layer.Attr{}, err
	}
	return in.attr, nil
}

func (l *memLower) Lookup(dir overlay.Ino, name string) (overlay.Ino, error) {
	in, err := l.inode(dir)
	if err != nil {
		return 0, err
	}
	i, found := slices.BinarySearchFunc(in.entries, name, func(e layer.Dirent, name string) int {
		return strings.Compare(e.Name, name)
	})
	if !found {
		return 0, fs.ErrNotExist
	}
	return in.entries[i].Ino, nil
}

func (l *memLower) NumEntries(dir overlay.Ino) (int, error) {
	in, err := l.inode(dir)
	if err != nil {
		return 0, err
	}
	return len(in.entries), nil
}

func (l *memLower) Entry(dir overlay.Ino, i int) (layer.Dirent, error) {
	in, err := l.inode(dir)
	if err != nil {
		return layer.Dirent{}, err
	}
	return in.entries[i], nil
}

func (l *memLower) Readlink(ino overlay.Ino) (string, error) {
	in, err := l.inode(ino)
	if err != nil {
		return "", err
	}
	return in.target, nil
}

func (l *memLower) Xattrs(ino overlay.Ino) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		in, err := l.inode(ino)
		if err != nil {
			return
		}
		for _, x := range in.xattrs {
			if !yield(x[0], []byte(x[1])) {
				return
			}
		}
	}
}

func (l *memLower) Names(ino overlay.Ino) iter.Seq2[overlay.Ino, string] {
	return func(yield func(overlay.Ino, string) bool) {
		in, err := l.inode(ino)
		if err != nil {
			return
		}
		for _, n := range in.names {
			if !yield(n.dir, n.name) {
				return
			}
		}
	}
}

func (l *memLower) Open(ino overlay.Ino) (layer.File, error) {
	in, err := l.inode(ino)
	if err != nil {
		return nil, err
	}
	return (*memFile)(in), nil
}

type memFile memInode

func (f *memFile) Size() int64 { return f.attr.Size }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if f.damaged {
		return 0, fmt.Errorf("read: %w", &layer.CorruptError{Blob: "sha256:feed", Offset: off, Err: layer.ErrChecksum})
	}
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Data(off int64) (start, end int64) {
	return min(max(off, f.hole), f.attr.Size), f.attr.Size
}

func (f *memFile) Ready(int64, int) bool { return false }

func (f *memFile) Direct(off int64, n int) (int, int64, int, bool) {
	if f.fd == nil || off >= f.attr.Size {
		return -1, 0, 0, false
	}
	return int(f.fd.Fd()), fdOffset + off, int(min(int64(n), f.attr.Size-off)), true
}

const (
	bigSize   = 3<<20 + 1000 // bytes of big and rawbig
	manyFiles = 1500         // names in many/

	holedAt, holedData = 2 << 20, 64 << 10 // bytes of holed: a hole, data
)

// pattern is n bytes that differ at every offset's vicinity: the numbers from 0.
func pattern(n int) []byte {
	out := make([]byte, 0, n+32)
	for i := int64(0); len(out) < n; i++ {
		out = append(strconv.AppendInt(out, i, 10), ',')
	}
	return out[:n]
}

// stdLower is the tree that every test here starts from.
func stdLower() *memLower {
	l := newLower()
	l.file("hello", 0o644, []byte("hello, lower\n"))
	l.file("empty", 0o644, nil)
	l.file("open", 0o666, []byte("anyone may write here\n"))
	l.file("suid", 0o6777, []byte("#!/bin/sh\n"))
	l.file("big", 0o644, pattern(bigSize))
	raw := l.file("rawbig", 0o644, pattern(bigSize))
	raw.fd = memFD(append(make([]byte, fdOffset), raw.data...))
	holed := l.file("holed", 0o644, append(make([]byte, holedAt), pattern(holedData)...))
	holed.hole, holed.attr.Blocks = holedAt, holedData/512
	l.file("damaged", 0o644, pattern(5000)).damaged = true
	labelled := l.file("labelled", 0o644, []byte("x"))
	labelled.xattrs = [][2]string{{"user.one", "1"}, {"user.two", "22"}}
	l.symlink("link", "hello")
	l.file("hard1", 0o644, []byte("two names\n"))
	l.hardlink("hard2", "hard1")
	l.dir("dir", 0o755)
	l.dir("dir/sub", 0o755)
	l.file("dir/sub/deep", 0o644, []byte("deep\n"))
	l.file("dir/a", 0o644, []byte("a"))
	l.file("dir/b", 0o644, []byte("b"))
	l.dir("open.d", 0o1777)
	l.dir("many", 0o755)
	for i := range manyFiles {
		l.file(fmt.Sprintf("many/name-%05d", i), 0o644, []byte{byte(i)})
	}
	return l
}

func memFD(data []byte) *os.File {
	fd, err := unix.MemfdCreate("lower", unix.MFD_CLOEXEC)
	if err != nil {
		panic(err)
	}
	f := os.NewFile(uintptr(fd), "lower")
	if _, err := f.Write(data); err != nil {
		panic(err)
	}
	return f
}

func TestTheFixtureReadsAsItWasMade(t *testing.T) {
	l := stdLower()
	ino, err := l.Lookup(layer.RootIno, "rawbig")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.Open(ino)
	if err != nil {
		t.Fatal(err)
	}
	fd, off, n, ok := f.Direct(7, 100)
	if !ok || n != 100 {
		t.Fatalf("Direct: %d bytes, %v", n, ok)
	}
	direct, read := make([]byte, n), make([]byte, n)
	if _, err := unix.Pread(fd, direct, off); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(read, 7); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(direct, read) {
		t.Errorf("Direct leads to %q, ReadAt to %q", direct, read)
	}
}

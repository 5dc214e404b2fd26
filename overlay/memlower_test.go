package overlay

import (
	"bytes"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// memLower is a lower tree in memory, for driving the union alone.
type memLower struct{ inodes []*memInode }

type memInode struct {
	attr    layer.Attr
	names   []memName         // where it is
	entries map[string]Ino    // directories
	sorted  []string          // directories
	link    string            // symlinks
	data    []byte            // regular files
	hole    int64             // regular files: how much of data at the start
	xattrs  map[string][]byte // all
}

type memName struct {
	dir  Ino
	name string
}

// newMemLower builds a tree from lines:
//
//	d PATH MODE            directory
//	f PATH MODE CONTENT    regular file
//	l PATH TARGET          symlink
//	h PATH EXISTING        hard link
//	p PATH MODE            fifo
//	c PATH MODE MAJ MIN    character device
//	x PATH NAME VALUE      extended attribute of PATH
//	o PATH UID GID         owner of PATH
//	s PATH OFF CONTENT     CONTENT at OFF of PATH, a hole before it
func newMemLower(lines ...string) *memLower {
	m := &memLower{inodes: []*memInode{nil}}
	root := m.add(unix.S_IFDIR|0o755, 0)
	root.attr.Nlink = 2
	for _, line := range lines {
		m.line(strings.Fields(line))
	}
	for _, in := range m.inodes[1:] {
		for name := range in.entries {
			in.sorted = append(in.sorted, name)
		}
		sort.Strings(in.sorted)
	}
	return m
}

func (m *memLower) add(mode uint32, size int64) *memInode {
	in := &memInode{entries: map[string]Ino{}, xattrs: map[string][]byte{}}
	in.attr = layer.Attr{Ino: Ino(len(m.inodes)), Mode: mode, Size: size, Mtime: layer.Timespec{Sec: 1600000000, Nsec: 5}}
	m.inodes = append(m.inodes, in)
	return in
}

func (m *memLower) line(w []string) {
	num := func(s string, base int) (v uint32) {
		format := "%d"
		if base == 8 {
			format = "%o"
		}
		if _, err := fmt.Sscanf(s, format, &v); err != nil {
			panic(err)
		}
		return v
	}
	var in *memInode
	switch w[0] {
	case "d":
		in = m.add(unix.S_IFDIR|num(w[2], 8), layer.DirSize)
		in.attr.Nlink = 1
		m.at(path.Dir(w[1])).attr.Nlink++
	case "f":
		content := strings.Join(w[3:], " ")
		in = m.add(unix.S_IFREG|num(w[2], 8), int64(len(content)))
		in.data = []byte(content)
		in.attr.Blocks = (in.attr.Size + 511) / 512
	case "l":
		in = m.add(unix.S_IFLNK|0o777, int64(len(w[2])))
		in.link = w[2]
	case "p":
		in = m.add(unix.S_IFIFO|num(w[2], 8), 0)
	case "c":
		in = m.add(unix.S_IFCHR|num(w[2], 8), 0)
		in.attr.Rdev = unix.Mkdev(num(w[3], 10), num(w[4], 10))
	case "h":
		in = m.at(w[2])
	case "x":
		m.at(w[1]).xattrs[w[2]] = []byte(w[3])
		return
	case "o":
		in := m.at(w[1])
		in.attr.UID, in.attr.GID = num(w[2], 10), num(w[3], 10)
		return
	case "s":
		in := m.at(w[1])
		in.hole = int64(num(w[2], 10))
		in.data = append(make([]byte, in.hole), w[3]...)
		in.attr.Size, in.attr.Blocks = int64(len(in.data)), (int64(len(w[3]))+511)/512
		return
	default:
		panic(w[0])
	}
	parent := m.at(path.Dir(w[1]))
	parent.entries[path.Base(w[1])] = in.attr.Ino
	in.names = append(in.names, memName{parent.attr.Ino, path.Base(w[1])})
	in.attr.Nlink++
}

func (m *memLower) at(p string) *memInode {
	in := m.inodes[1]
	if p == "." {
		return in
	}
	for _, name := range strings.Split(p, "/") {
		in = m.inodes[in.entries[name]]
	}
	return in
}

func (m *memLower) get(ino Ino) (*memInode, error) {
	if ino == 0 || int(ino) >= len(m.inodes) {
		return nil, layer.ErrCorrupt
	}
	return m.inodes[ino], nil
}

func (m *memLower) Attr(ino Ino) (layer.Attr, error) {
	in, err := m.get(ino)
	if err != nil {
		return layer.Attr{}, err
	}
	return in.attr, nil
}

func (m *memLower) Lookup(dir Ino, name string) (Ino, error) {
	in, err := m.get(dir)
	if err != nil {
		return 0, err
	}
	if ino, ok := in.entries[name]; ok {
		return ino, nil
	}
	return 0, fs.ErrNotExist
}

func (m *memLower) NumEntries(dir Ino) (int, error) {
	in, err := m.get(dir)
	if err != nil {
		return 0, err
	}
	return len(in.sorted), nil
}

func (m *memLower) Entry(dir Ino, i int) (layer.Dirent, error) {
	in, err := m.get(dir)
	if err != nil {
		return layer.Dirent{}, err
	}
	name := in.sorted[i]
	ino := in.entries[name]
	return layer.Dirent{Name: name, Ino: ino, Mode: m.inodes[ino].attr.Mode & unix.S_IFMT}, nil
}

func (m *memLower) Readlink(ino Ino) (string, error) { return m.inodes[ino].link, nil }

func (m *memLower) Xattrs(ino Ino) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		var names []string
		for name := range m.inodes[ino].xattrs {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			if !yield(name, m.inodes[ino].xattrs[name]) {
				return
			}
		}
	}
}

func (m *memLower) Names(ino Ino) iter.Seq2[Ino, string] {
	return func(yield func(Ino, string) bool) {
		for _, n := range m.inodes[ino].names {
			if !yield(n.dir, n.name) {
				return
			}
		}
	}
}

func (m *memLower) Open(ino Ino) (layer.File, error) {
	return memFile{bytes.NewReader(m.inodes[ino].data), m.inodes[ino].hole}, nil
}

type memFile struct {
	*bytes.Reader
	hole int64
}

func (f memFile) Size() int64 { return f.Reader.Size() }

func (f memFile) Data(off int64) (start, end int64) { return min(max(off, f.hole), f.Size()), f.Size() }

func (memFile) Ready(int64, int) bool { return false }

func (memFile) Direct(int64, int) (int, int64, int, bool) { return -1, 0, 0, false }

var _ Lower = (*memLower)(nil)

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entryTime is the mtime of entries that do not ask for another.
var entryTime = time.Unix(1700000000, 0)

// tent is one tar entry of a test layer.
type tent struct {
	tar.Header
	data string
	raw  []byte // in place of all others: bytes for the stream as they are
}

func newEnt(typ byte, name string, mode int64) tent {
	return tent{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: entryTime}}
}

func tReg(name, data string) tent {
	e := newEnt(tar.TypeReg, name, 0o644)
	e.data, e.Size = data, int64(len(data))
	return e
}
func tDir(name string) tent  { return newEnt(tar.TypeDir, name, 0o755) }
func tFifo(name string) tent { return newEnt(tar.TypeFifo, name, 0o600) }
func tSym(name, target string) tent {
	e := newEnt(tar.TypeSymlink, name, 0o777)
	e.Linkname = target
	return e
}

func tLink(name, target string) tent {
	e := newEnt(tar.TypeLink, name, 0o777)
	e.Linkname = target
	return e
}

func tChar(name string, major, minor int64) tent {
	e := newEnt(tar.TypeChar, name, 0o660)
	e.Devmajor, e.Devminor = major, minor
	return e
}

func tWhite(dir, name string) tent { return tReg(dir+WhiteoutName(name), "") }
func tOpaque(dir string) tent      { return tReg(dir+OpaqueName, "") }
func tRaw(b []byte) tent           { return tent{raw: b} }

func (e tent) mode(m int64) tent       { e.Mode = m; return e }
func (e tent) own(uid, gid int) tent   { e.Uid, e.Gid = uid, gid; return e }
func (e tent) at(sec, nsec int64) tent { e.ModTime = time.Unix(sec, nsec); return e }
func (e tent) xattr(name, value string) tent {
	e.PAXRecords = maps.Clone(e.PAXRecords)
	if e.PAXRecords == nil {
		e.PAXRecords = make(map[string]string)
	}
	e.PAXRecords[paxXattr+name] = value
	return e
}

// tarOf is the stream of these entries, with the end mark.
func tarOf(t testing.TB, ents ...tent) []byte {
	t.Helper()
	return append(tarOpen(t, ents...), make([]byte, 2*tarBlock)...)
}

// tarOpen is the stream of these entries without the end mark.
func tarOpen(t testing.TB, ents ...tent) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, e := range ents {
		if e.raw != nil {
			out.Write(e.raw)
			continue
		}
		w := tar.NewWriter(&out)
		if e.ModTime.Nanosecond() != 0 || len(e.PAXRecords) > 0 {
			e.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("write header of %q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// memBlob is a layer's plain stream in memory.
type memBlob struct{ *bytes.Reader }

func (memBlob) Close() error                              { return nil }
func (b memBlob) Ready(int64, int) bool                   { return false }
func (b memBlob) Size() int64                             { return b.Reader.Size() }
func (memBlob) Direct(int64, int) (int, int64, int, bool) { return -1, 0, 0, false }

// mergeLayers scans and merges plain streams.
func mergeLayers(keepDirlinks bool, layers ...[]byte) (*merger, error) {
	m := newMerger(keepDirlinks)
	for i, l := range layers {
		toc, err := scanTar(bytes.NewReader(l))
		if err != nil {
			return nil, err
		}
		var file sliceWriter
		if err := toc.encode(&file); err != nil {
			return nil, err
		}
		if toc, err = decodeTOC(file); err != nil {
			return nil, err
		}
		if err := m.apply(context.Background(), fmt.Sprint(i), toc); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// encodeFile writes a merged tree to a new file and gives its bytes.
func encodeFile(t testing.TB, m *merger, layers int) (*os.File, []byte) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "tree")
	if err != nil {
		t.Fatal(err)
	}
	if err := encodeTree(m, f, [32]byte{1}, layers); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return f, b
}

// imageOf is the image of plain streams.
func imageOf(t testing.TB, keepDirlinks bool, layers ...[]byte) (*Image, error) {
	t.Helper()
	m, err := mergeLayers(keepDirlinks, layers...)
	if err != nil {
		return nil, err
	}
	f, _ := encodeFile(t, m, len(layers))
	tree, err := OpenTree(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Verify(context.Background()); err != nil {
		t.Fatalf("verify: %v", err)
	}
	im := &Image{Tree: tree}
	for _, l := range layers {
		im.layers = append(im.layers, &lazyBlob{
			open:    func() (*openedBlob, error) { return &openedBlob{Blob: memBlob{bytes.NewReader(l)}}, nil },
			abandon: func() error { return nil },
		})
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im, nil
}

// fileInfo is what a dump says of one path.
type fileInfo struct {
	path   string
	mode   uint32
	uid    uint32
	gid    uint32
	nlink  uint64
	rdev   uint64
	size   int64
	mtime  Timespec
	text   string // content or target
	xattrs []string
	ino    uint64
}

// dump lists a tree: one line a path. Inodes are called by their first path.
func dump(infos []fileInfo) string {
	first := make(map[uint64]string)
	var out strings.Builder
	for _, i := range infos {
		kind := map[uint32]string{
			unix.S_IFREG: "f", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFCHR: "c",
			unix.S_IFBLK: "b", unix.S_IFIFO: "p",
		}[i.mode&unix.S_IFMT]
		fmt.Fprintf(&out, "%s %s %04o", i.path, kind, i.mode&0o7777)
		if i.uid != 0 || i.gid != 0 {
			fmt.Fprintf(&out, " %d:%d", i.uid, i.gid)
		}
		if i.mtime != (Timespec{Sec: entryTime.Unix()}) {
			fmt.Fprintf(&out, " @%d.%09d", i.mtime.Sec, i.mtime.Nsec)
		}
		switch kind {
		case "c", "b":
			fmt.Fprintf(&out, " %d,%d", unix.Major(i.rdev), unix.Minor(i.rdev))
		case "l":
			fmt.Fprintf(&out, " -> %s", i.text)
		case "f":
			if len(i.text) > 40 {
				i.text = fmt.Sprintf("%.40s… %d", i.text, i.size)
			}
			fmt.Fprintf(&out, " %q", i.text)
		}
		for _, x := range i.xattrs {
			fmt.Fprintf(&out, " %s", x)
		}
		if kind != "d" && i.nlink > 1 {
			name, ok := first[i.ino]
			if !ok {
				name = i.path
				first[i.ino] = name
			}
			fmt.Fprintf(&out, " x%d=%s", i.nlink, name)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// walkImage lists an image in pre-order.
func walkImage(t testing.TB, im *Image) []fileInfo {
	t.Helper()
	var out []fileInfo
	var walk func(path string, ino Ino)
	walk = func(path string, ino Ino) {
		a, err := im.Attr(ino)
		if err != nil {
			t.Fatalf("attr %s: %v", path, err)
		}
		i := fileInfo{
			path: path, mode: a.Mode, uid: a.UID, gid: a.GID, nlink: uint64(a.Nlink), rdev: a.Rdev,
			size: a.Size, mtime: a.Mtime, ino: uint64(ino),
		}
		for k, v := range im.Xattrs(ino) {
			i.xattrs = append(i.xattrs, fmt.Sprintf("%s=%q", k, v))
		}
		switch a.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := im.Open(ino)
			if err != nil {
				t.Fatalf("open %s: %v", path, err)
			}
			b, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
			if err != nil {
				t.Fatalf("read %s: %v", path, err)
			}
			if i.text = string(b); int64(len(b)) != a.Size {
				t.Fatalf("%s: read %d bytes of %d", path, len(b), a.Size)
			}
		case unix.S_IFLNK:
			if i.text, err = im.Readlink(ino); err != nil {
				t.Fatalf("readlink %s: %v", path, err)
			}
		}
		out = append(out, i)
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		n, err := im.NumEntries(ino)
		if err != nil {
			t.Fatal(err)
		}
		for k := range n {
			d, err := im.Entry(ino, k)
			if err != nil {
				t.Fatal(err)
			}
			sub := filepath.Join(path, d.Name)
			if got, err := im.LookupPath(sub); err != nil || got != d.Ino {
				t.Fatalf("lookup %s: %d, %v; want %d", sub, got, err, d.Ino)
			}
			if _, err := im.PathOf(d.Ino); err != nil {
				t.Fatalf("path of %d: %v", d.Ino, err)
			}
			walk(sub, d.Ino)
		}
	}
	walk(".", RootIno)
	return out
}

// walkDisk lists an extracted tree in pre-order of sorted names.
func walkDisk(t testing.TB, root string) []fileInfo {
	t.Helper()
	var out []fileInfo
	var walk func(path string)
	walk = func(path string) {
		full := filepath.Join(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			t.Fatalf("lstat %s: %v", full, err)
		}
		i := fileInfo{
			path: path, mode: st.Mode, uid: st.Uid, gid: st.Gid, nlink: uint64(st.Nlink), rdev: st.Rdev,
			size: st.Size, mtime: Timespec{st.Mtim.Sec, uint32(st.Mtim.Nsec)}, ino: st.Ino,
		}
		i.xattrs = diskXattrs(t, full)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(full)
			if err != nil {
				t.Fatal(err)
			}
			i.text = string(b)
		case unix.S_IFLNK:
			target, err := os.Readlink(full)
			if err != nil {
				t.Fatal(err)
			}
			i.text = target
		}
		out = append(out, i)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		ents, err := os.ReadDir(full)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range ents {
			walk(filepath.Join(path, e.Name()))
		}
	}
	walk(".")
	return out
}

func diskXattrs(t testing.TB, path string) []string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, val)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s=%q", name, val[:n]))
	}
	slices.Sort(out)
	return out
}

// readPath is the content of the file at path.
func readPath(t testing.TB, im *Image, path string) string {
	t.Helper()
	f := openPath(t, im, path)
	b, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return string(b)
}

// openPath is the content of the regular file at a path.
func openPath(t testing.TB, im *Image, path string) File {
	t.Helper()
	ino, err := im.LookupPath(path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	f, err := im.Open(ino)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f
}

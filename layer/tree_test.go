package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sampleTree is a tree file with something of everything in it.
func sampleTree(t testing.TB) []byte {
	t.Helper()
	m, err := mergeLayers(false, tarOf(t,
		tDir("d"), tReg("d/a", "1").xattr("user.k", "v").xattr("user.empty-not", "x"), tLink("d/b", "d/a"), tSym("l", "d/a"), tChar("c", 5, 1),
		tRaw(paxHeader('x', "GNU.sparse.size=99", "GNU.sparse.map=3,1,50,2", "GNU.sparse.numblocks=2")), tRaw(newRawTar("s", '0', 3).with("xyz"))))
	if err != nil {
		t.Fatal(err)
	}
	f, b := encodeFile(t, m, 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// readAll calls everything a tree has, for every inode and some that are none.
func readAll(t *Tree) {
	limit := min(Ino(t.Len()), 64) + 2
	for ino := range limit {
		_, _ = t.Attr(ino)
		_, _ = t.Readlink(ino)
		_, _ = t.PathOf(ino)
		_, _ = t.Extents(ino)
		_, _ = t.Lookup(ino, "d")
		_, _ = t.Lookup(ino, "")
		n, _ := t.NumEntries(ino)
		for i := range min(n, 64) + 1 {
			if d, err := t.Entry(ino, i); err == nil {
				_, _ = t.Lookup(ino, d.Name)
			}
		}
		names := 0
		for range t.Names(ino) {
			if names++; names > 64 {
				break
			}
		}
		xs := 0
		for _, v := range t.Xattrs(ino) {
			if xs++; xs > 64 {
				break
			}
			_ = bytes.Clone(v)
		}
		im := Image{Tree: t, layers: []*lazyBlob{{
			open: func() (*openedBlob, error) {
				return &openedBlob{Blob: memBlob{bytes.NewReader(make([]byte, 100))}}, nil
			},
			abandon: func() error { return nil },
		}}}
		if f, err := im.Open(ino); err == nil {
			var p [200]byte
			for _, off := range []int64{0, 1, 49, f.Size() - 1} {
				_, _ = f.ReadAt(p[:], off)
				_, _, _, _ = f.Direct(off, 10)
			}
		}
	}
	_, _ = t.LookupPath("d/a")
}

// sealHeader makes a changed header's checksum and file size right again.
func sealHeader(b []byte) {
	if len(b) >= treeHeaderSize {
		binary.LittleEndian.PutUint64(b[hdrFileSize:], uint64(len(b)))
		binary.LittleEndian.PutUint32(b[hdrCRC:], crc32.Checksum(b[:hdrCRC], castagnoli))
	}
}

func FuzzOpenTree(f *testing.F) {
	b := sampleTree(f)
	f.Add(b)
	f.Add(b[:treeHeaderSize])
	f.Add([]byte(treeMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for range 2 {
			if tree, err := newTree(b); err == nil {
				readAll(tree)
				_ = tree.Verify(t.Context())
			}
			sealHeader(b)
		}
	})
}

// Every byte of a tree file is hit once; what is read stays an error or a value,
// and Verify never lets it pass.
func TestAnyDamagedByteIsSafeAndFound(t *testing.T) {
	whole := sampleTree(t)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0xff
		tree, err := newTree(b)
		if i < treeHeaderSize && err == nil {
			t.Errorf("header byte %d: opened", i)
		}
		if err != nil {
			continue
		}
		readAll(tree)
		err = tree.Verify(t.Context())
		if !inSection(tree, i) {
			continue // padding
		}
		if !errors.Is(err, ErrChecksum) {
			t.Errorf("byte %d: verify says %v", i, err)
		}
		if tree.secs, err = reseal(tree); err != nil {
			t.Fatal(err)
		}
		_ = tree.Verify(t.Context()) // the records' own checks
	}
}

func inSection(t *Tree, i int) bool {
	for _, s := range t.secs {
		if uint64(i) >= s.off && uint64(i) < s.off+s.size {
			return true
		}
	}
	return false
}

func reseal(t *Tree) (secs [numSections]section, err error) {
	secs = t.secs
	for i, s := range secs {
		secs[i].crc = crc32.Checksum(t.data[s.off:s.off+s.size], castagnoli)
	}
	return secs, nil
}

func TestBrokenTreeFilesAreToldApart(t *testing.T) {
	whole := sampleTree(t)
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(whole)) }
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, ErrMagic},
		{"another format", []byte("#!/bin/sh\n"), ErrMagic},
		{"cut in the header", whole[:300], ErrChecksum},
		{"cut by a byte", whole[:len(whole)-1], ErrChecksum},
		{"longer by a byte", append(bytes.Clone(whole), 0), ErrChecksum},
		{"of the next version", edit(func(b []byte) []byte { b[hdrVersion]++; sealHeader(b); return b }), ErrVersion},
		{"with an unknown feature", edit(func(b []byte) []byte { b[hdrIncompat] = 1; sealHeader(b); return b }), ErrVersion},
		{"with a feature to be ignored", edit(func(b []byte) []byte { b[hdrCompat] = 1; sealHeader(b); return b }), nil},
		{"with a section beyond the end", edit(func(b []byte) []byte { b[hdrSections+8+6] = 1; sealHeader(b); return b }), ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tree")
			if err := os.WriteFile(path, c.b, 0o444); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := OpenTree(f)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil {
				if err := tree.Close(); err != nil {
					t.Error(err)
				}
			}
			if f.Close() == nil {
				t.Error("the file was left open")
			}
		})
	}
}

// A mapped tree is locked: who would change the file in place can see that.
func TestAMappedTreeIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	if err := os.WriteFile(path, sampleTree(t), 0o444); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tree, err := OpenTree(open())
	if err != nil {
		t.Fatal(err)
	}
	other := open()
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("exclusive lock while mapped: %v", err)
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("exclusive lock after Close: %v", err)
	}
}

func TestTreeAnswersWrongQuestionsWithErrors(t *testing.T) {
	im, err := imageOf(t, false, tarOf(t, tDir("d"), tReg("d/f", "x"), tSym("l", "d")))
	if err != nil {
		t.Fatal(err)
	}
	file, err := im.LookupPath("d/f")
	if err != nil {
		t.Fatal(err)
	}
	for _, ino := range []Ino{0, Ino(im.Len()) + 1, 1 << 63} {
		if _, err := im.Attr(ino); !errors.Is(err, ErrInode) {
			t.Errorf("attr of %d: %v", ino, err)
		}
	}
	if _, err := im.Lookup(RootIno, "nope"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lookup of nothing: %v", err)
	}
	if _, err := im.Lookup(file, "x"); !errors.Is(err, ErrType) {
		t.Errorf("lookup in a file: %v", err)
	}
	for _, p := range []string{"d/f/x", "l/f", "", "d/", "/d", "./d", "d/../d", ".."} {
		if _, err := im.LookupPath(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("path %q: %v", p, err)
		}
	}
	if _, err := im.Readlink(file); !errors.Is(err, ErrType) {
		t.Errorf("readlink of a file: %v", err)
	}
	if _, err := im.Open(RootIno); !errors.Is(err, ErrType) {
		t.Errorf("open of a directory: %v", err)
	}
	if _, err := im.Entry(RootIno, 2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("entry beyond the end: %v", err)
	}
	if _, err := im.Entry(RootIno, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("entry -1: %v", err)
	}
}

func TestNamesFindEveryLinkOfAnInode(t *testing.T) {
	im, err := imageOf(t, false, tarOf(t, tDir("a"), tReg("f", "x"), tLink("a/g", "f"), tLink("a/a", "f"), tReg("only", "")))
	if err != nil {
		t.Fatal(err)
	}
	list := func(path string) string {
		ino, err := im.LookupPath(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for dir, name := range im.Names(ino) {
			p, err := im.PathOf(dir)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, p+":"+name)
		}
		first, err := im.PathOf(ino)
		if err != nil {
			t.Fatal(err)
		}
		return first + " " + strings.Join(out, " ")
	}
	for path, want := range map[string]string{
		"f": "f .:f a:a a:g", "a/g": "f .:f a:a a:g", "only": "only .:only", "a": "a .:a", ".": ". ",
	} {
		if got := list(path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

// Numbers are rows in pre-order: a directory before all in it.
func TestInodeNumbersArePreOrder(t *testing.T) {
	im, err := imageOf(t, false, tarOf(t, tReg("z", ""), tReg("a/2/x", ""), tReg("a/1", ""), tReg("m", ""), tReg("a-b", "")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range im.Len() {
		p, err := im.PathOf(Ino(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p)
	}
	if want := []string{".", "a", "a/1", "a/2", "a/2/x", "a-b", "m", "z"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLookupsAllocateNothing(t *testing.T) {
	im := bigImage(t, 5000)
	dir, err := im.LookupPath("dir3")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		ino, err := im.Lookup(dir, "file00000300.txt")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := im.Attr(ino); err != nil {
			t.Fatal(err)
		}
		if _, err := im.Lookup(dir, "nothing of that name"); err == nil {
			t.Fatal("found")
		}
		if _, err := im.Entry(dir, 7); err != nil {
			t.Fatal(err)
		}
		if _, err := im.NumEntries(dir); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// residentKB is how many pages of the tree are in this process's memory, in KiB.
func residentKB(t *testing.T, name string) (kb int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(maps), name)
	if !ok {
		t.Fatalf("%s is not mapped", name)
	}
	_, rest, _ = strings.Cut(rest, "Rss:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}

func TestAnUnloadedTreeComesBackAsItIsUsed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image.tree")
	if err := os.WriteFile(name, sampleTree(t), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := OpenTree(f)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := tree.LookupPath("d/a"); err != nil {
			t.Error(err)
		}
		if residentKB(t, name) == 0 {
			t.Error("nothing of a tree in use is in memory")
		}
		if err := tree.Unload(); err != nil {
			t.Fatal(err)
		}
		if kb := residentKB(t, name); kb != 0 {
			t.Errorf("%d KiB are in memory after that", kb)
		}
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tree.Unload(); err != nil {
		t.Errorf("of a closed tree: %v", err)
	}
}

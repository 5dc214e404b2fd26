package imagetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// header is a tar header with the ways of writing one that archive/tar refuses.
type header struct {
	tar.Header
	body string
}

func file(name, body string) header {
	return header{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func directory(name string) header {
	return header{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func symlink(name, target string) header {
	return header{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func hardlink(name, target string) header {
	return header{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, ""}
}

func tarOf(t testing.TB, list ...header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		h.Size = int64(len(h.body))
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(h.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sumHeader makes the checksum of the first header right again.
func sumHeader(b []byte) {
	copy(b[148:156], "        ")
	n := 0
	for _, c := range b[:512] {
		n += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", n))
}

// global makes records that hold for all entries after them.
func global(records map[string]string) header {
	return header{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: records}, ""}
}

// xattrRecords are PAX records of n extended attributes.
func xattrRecords(n int, value string) map[string]string {
	records := make(map[string]string, n)
	for i := range n {
		records[fmt.Sprintf("SCHILY.xattr.user.%d", i)] = value
	}
	return records
}

// files are empty and called by numbers.
func files(n int) []header {
	out := make([]header, n)
	for i := range out {
		out[i] = file(fmt.Sprintf("f%d", i), "")
	}
	return out
}

// Attack is an image that means harm to a directory outside, or asks for far more
// memory or time than its size.
type Attack struct {
	Name   string
	Layers func(t testing.TB, outside string) [][]byte // tars, the lowest first
	Refuse bool                                        // it cannot be read as an image: CodeImage
	Inside []string                                    // what lies in the root file system else
}

// Attacks are those that are known. The tests of extraction run them, fuzz targets begin
// with them, and testdata/hostile has their tars for other programs (go generate).
func Attacks() []Attack {
	one := func(list func(outside string) []header) func(testing.TB, string) [][]byte {
		return func(t testing.TB, outside string) [][]byte { return [][]byte{tarOf(t, list(outside)...)} }
	}
	// raw is a file whose header is changed before it is written, and after.
	raw := func(before func(*header), after func([]byte)) func(testing.TB, string) [][]byte {
		return func(t testing.TB, _ string) [][]byte {
			h := file("f", "x")
			if before != nil {
				before(&h)
			}
			b := tarOf(t, h)
			if after != nil {
				after(b)
				sumHeader(b)
			}
			return [][]byte{b}
		}
	}
	up := strings.Repeat("../", 40)
	return []Attack{
		{"names with ..", one(func(out string) []header {
			return []header{file(up+out[1:]+"/evil", "x"), file("../evil", "x"), directory("a/../../b")}
		}), false, []string{"evil", "b"}},
		{"absolute names", one(func(out string) []header { return []header{file(out+"/evil", "x"), directory("/abs")} }), false, []string{"abs"}},
		{"a file through a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), file("ln/evil", "x"), file("ln/secret", "x")}
		}), false, nil},
		{"a file through a relative symlink", one(func(out string) []header {
			return []header{symlink("ln", up+out[1:]), file("ln/evil", "x")}
		}), false, nil},
		{"a file over a symlink", one(func(out string) []header {
			return []header{symlink("ln", out+"/secret"), file("ln", "x")}
		}), false, []string{"ln"}},
		{"a directory over a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), directory("ln"), file("ln/evil", "x")}
		}), false, []string{"ln/evil"}},
		{"symlinks in a chain", one(func(out string) []header {
			return []header{symlink("a", "b/c"), symlink("b", up), symlink("d", "a/.."), file("d/evil", "x")}
		}), false, nil},
		{"symlinks in a circle", one(func(string) []header {
			return []header{symlink("a", "b"), symlink("b", "a"), file("a/evil", "x")}
		}), true, nil},
		{"a hard link to outside", one(func(out string) []header {
			return []header{hardlink("h", out+"/secret"), file("h", "x")}
		}), true, nil},
		{"a hard link through a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), hardlink("h", "ln/secret")}
		}), true, nil},
		{"a hard link to a symlink", one(func(out string) []header {
			return []header{symlink("ln", out+"/secret"), hardlink("h", "ln"), file("h", "x")}
		}), false, []string{"h"}},
		{"whiteouts of outside", one(func(out string) []header {
			return []header{file(up+filepath.Dir(out)[1:]+"/.wh."+filepath.Base(out), ""), file("../.wh.x", "")}
		}), false, nil},
		{"a whiteout through a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), file("ln/.wh.secret", ""), file("ln/.wh..wh..opq", "")}
		}), false, nil},
		{"a whiteout of ..", one(func(string) []header { return []header{file("a/.wh...", "")} }), true, nil},
		{"a whiteout of .", one(func(string) []header { return []header{file("a/.wh..", "")} }), true, nil},
		{"a whiteout of nothing", one(func(string) []header { return []header{file(".wh.", "")} }), true, nil},
		{"a root that is a file", one(func(string) []header { return []header{file("a", "x"), file(".", "x")} }), true, nil},
		{"a root that is a symlink", one(func(out string) []header { return []header{symlink(".", out), file("evil", "x")} }), true, nil},
		{"a name of 4 KiB", one(func(string) []header { return []header{file(strings.Repeat("n", 4096), "x")} }), true, nil},
		{"a path of 4 KiB", one(func(string) []header {
			return []header{file(strings.Repeat("n/", 2000)+"f", "x")}
		}), false, []string{"n/n/n"}},
		{"a path that is too long", one(func(string) []header { return []header{file(strings.Repeat("n/", 3000)+"f", "x")} }), true, nil},
		{"a name with a NUL", func(t testing.TB, _ string) [][]byte {
			b := tarOf(t, file("abc", "x"))
			return [][]byte{bytes.Replace(b, []byte("abc"), []byte("a\x00c"), 1)}
		}, true, nil},
		{"a tree 4,000 deep", func(t testing.TB, _ string) [][]byte { return deepTree(t, 2) }, false, []string{"d/d/d"}},
		{"a tree 10,000 deep", func(t testing.TB, _ string) [][]byte { return deepTree(t, 5) }, true, nil},
		{"a setuid program and device nodes", one(func(string) []header {
			h := file("su", "x")
			h.Mode = 0o4755
			dev := header{tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o666, Devmajor: 8}, ""}
			return []header{h, dev}
		}), false, []string{"su", "sda"}},
		{"a symlink in one layer, a file through it in the next", func(t testing.TB, out string) [][]byte {
			return [][]byte{tarOf(t, symlink("ln", out)), tarOf(t, file("ln/evil", "x")), tarOf(t, file("ln/.wh.secret", ""))}
		}, false, nil},
		{"ids and a time at the ends of what fits", raw(func(h *header) {
			h.Uid, h.Gid, h.ModTime = 1<<32-2, 1<<32-2, time.Unix(1<<33, 0)
		}, nil), false, []string{"f"}},
		{"an id that no file system has", raw(func(h *header) { h.Uid = 1 << 40 }, nil), true, nil},
		{"a size of 8 EiB with nothing behind it", raw(nil, func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }), true, nil},
		{"a size below nothing", raw(nil, func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }), true, nil},
		{"a PAX record of a gigabyte", func(t testing.TB, _ string) [][]byte {
			b := tarOf(t, header{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{"X.y": "z"}}, ""})
			copy(b[124:136], "07777777777\x00") // of the extended header
			sumHeader(b)
			return [][]byte{b}
		}, true, nil},
		{"twenty thousand PAX records", func(t testing.TB, _ string) [][]byte {
			records := map[string]string{}
			for i := range 20_000 {
				records[fmt.Sprintf("NOBODY.knows.%d", i)] = "value"
			}
			return [][]byte{tarOf(t, header{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: records}, ""})}
		}, false, []string{"f"}},
		{"sixteen great xattrs for all of a thousand files", one(func(string) []header {
			return append([]header{global(xattrRecords(16, strings.Repeat("v", 65_000)))}, files(1000)...)
		}), false, []string{"f0", "f999"}},
		{"thousands of xattrs for all of a hundred files", one(func(string) []header {
			return append([]header{global(xattrRecords(30_000, "v"))}, files(100)...)
		}), false, []string{"f0", "f99"}},
		{"thousands of xattrs for one file", one(func(string) []header {
			h := file("f", "")
			h.PAXRecords = xattrRecords(30_000, "v")
			return []header{h}
		}), true, nil},
		{"sixteen great xattrs for each of forty files", one(func(string) []header {
			list := files(40)
			for i := range list {
				list[i].PAXRecords = xattrRecords(16, strings.Repeat("v", 65_000))
			}
			return list
		}), true, nil},
		{"four million directories that no entry describes", one(func(string) []header {
			list := files(2000)
			for i := range list {
				list[i].Name = fmt.Sprintf("%04d/%sf", i, strings.Repeat("d/", 2041))
			}
			return list
		}), true, nil},
		{"a directory that becomes a symlink", func(t testing.TB, out string) [][]byte {
			return [][]byte{tarOf(t, directory("d"), file("d/f", "x")), tarOf(t, symlink("d", out), file("d/evil", "x"))}
		}, false, nil},
	}
}

// deepTree is a tree of 2,000 levels a layer, each of which goes on where a symlink of
// the one below leads.
func deepTree(t testing.TB, n int) [][]byte {
	deep := strings.Repeat("d/", 2000)
	var layers [][]byte
	from := ""
	for i := range n {
		next := fmt.Sprintf("s%d", i)
		layers = append(layers, tarOf(t, directory(from+deep), symlink(next, from+deep)))
		from = next + "/"
	}
	return layers
}

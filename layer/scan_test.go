package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// rawTar writes a header block by hand and sums it up.
type rawTar struct {
	b [tarBlock]byte
}

func newRawTar(name string, typeflag byte, size int64) *rawTar {
	r := &rawTar{}
	copy(r.b[:], name)
	r.set(fieldMode, "0000644\x00")
	r.set(fieldUID, "0000000\x00")
	r.set(fieldGID, "0000000\x00")
	r.set(fieldSize, fmt.Sprintf("%011o\x00", size))
	r.set(fieldMtime, fmt.Sprintf("%011o\x00", entryTime.Unix()))
	r.set(fieldMagic, "ustar\x0000")
	r.b[typeflagOffset] = typeflag
	return r
}

func (r *rawTar) set(f tarField, v string) *rawTar {
	clear(f.of(r.b[:]))
	copy(f.of(r.b[:]), v)
	return r
}

func (r *rawTar) put(off int, v string) *rawTar { copy(r.b[off:], v); return r }

// with gives the header and data, padded.
func (r *rawTar) with(data string) []byte {
	sealBlock(r.b[:])
	out := append(r.b[:len(r.b):len(r.b)], data...)
	return append(out, make([]byte, -len(data)&(tarBlock-1))...)
}

func paxBody(records ...string) string {
	var out strings.Builder
	for _, r := range records {
		for n := len(r) + 3; ; n++ {
			if line := fmt.Sprintf("%d %s\n", n, r); len(line) == n {
				out.WriteString(line)
				break
			}
		}
	}
	return out.String()
}

func paxHeader(typeflag byte, records ...string) []byte {
	body := paxBody(records...)
	return newRawTar("pax", typeflag, int64(len(body))).with(body)
}

// longXattrs are records of n attributes, each with a name that takes 256 bytes with
// its NUL.
func longXattrs(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("SCHILY.xattr.user.%0250d=", i)
	}
	return out
}

func base256Field(v int64, n int) string {
	b := make([]byte, n)
	fill := byte(0)
	if v < 0 {
		fill = 0xff
	}
	for i := range b {
		b[i] = fill
	}
	binary.BigEndian.PutUint64(b[n-8:], uint64(v))
	b[0] |= 0x80
	return string(b)
}

// TestOddHeaders has what archive/tar's writer never makes.
func TestOddHeaders(t *testing.T) {
	plain := newRawTar("after", '0', 1).with("z")
	const after = "after f 0644 \"z\"\n"
	v7 := func(name string, typ byte, data string) []byte {
		return newRawTar(name, typ, int64(len(data))).set(fieldMagic, "").with(data)
	}
	gnuHeader := func(name string, typ byte, size int64) *rawTar {
		return newRawTar(name, typ, size).set(fieldMagic, "ustar  \x00")
	}
	tests := []struct {
		name  string
		raw   [][]byte
		want  string
		fails string
	}{
		{name: "V7: no magic, NUL type, a directory by its slash", raw: [][]byte{v7("d/", 0, ""), v7("d/f", 0, "x")}, want: "d d 0644\nd/f f 0644 \"x\"\n"},
		{name: "the ustar prefix", raw: [][]byte{newRawTar("f", '0', 1).set(fieldPrefix, "a/b").with("x")}, want: "a d 0755 @0.000000000\na/b d 0755 @0.000000000\na/b/f f 0644 \"x\"\n"},
		{name: "the star prefix ends before its times", raw: [][]byte{newRawTar("f", '0', 1).set(fieldPrefix, "p").put(345+131, "07777777777 07777777777 ").set(fieldTrailer, "tar\x00").with("x")}, want: "p d 0755 @0.000000000\np/f f 0644 \"x\"\n"},
		{name: "GNU times are no prefix", raw: [][]byte{gnuHeader("f", '0', 1).set(fieldGNUAtime, "14524770600 ").set(fieldGNUCtime, "14524770600 ").with("x")}, want: "f f 0644 \"x\"\n"},
		{name: "a prefix under the GNU magic, as Go before 1.8 wrote it", raw: [][]byte{gnuHeader("f", '0', 1).set(fieldPrefix, "very/long").with("x")}, want: "very d 0755 @0.000000000\nvery/long d 0755 @0.000000000\nvery/long/f f 0644 \"x\"\n"},
		{name: "a contiguous file is a file", raw: [][]byte{newRawTar("f", '7', 1).with("x")}, want: "f f 0644 \"x\"\n"},
		{name: "a volume label is nothing", raw: [][]byte{newRawTar("label", 'V', 0).with("")}, want: ""},
		{name: "an unknown type", raw: [][]byte{newRawTar("f", 'Z', 0).with("")}, fails: `tar entry "f" at offset 0: unknown type 'Z'`},
		{name: "links and directories have no data whatever their size says", raw: [][]byte{newRawTar("d", '5', 4096).with(""), newRawTar("s", '2', 99).set(fieldLinkname, "d").with("")}, want: "d d 0644\ns l 0777 -> d\n"},
		{name: "a global header's records are defaults", raw: [][]byte{paxHeader('g', "comment=0123456789abcdef", "mtime=5.25", "path=no", "size=77"), newRawTar("a", '0', 0).with(""), paxHeader('x', "mtime=6"), newRawTar("b", '0', 0).with(""), paxHeader('x', "mtime="), newRawTar("c", '0', 0).with(""), paxHeader('g', "mtime=")}, want: "a f 0644 @5.250000000 \"\"\nb f 0644 @6.000000000 \"\"\nc f 0644 \"\"\n"},
		{name: "a global header's xattrs are dropped", raw: [][]byte{paxHeader('g', "SCHILY.xattr.user.g=1"), paxHeader('x', "SCHILY.xattr.user.l=2"), newRawTar("a", '0', 0).with("")}, want: "a f 0644 \"\" user.l=\"2\"\n"},
		{name: "a time of more than 64 bytes", raw: [][]byte{paxHeader('g', "mtime=1."+strings.Repeat("0", 63)), newRawTar("a", '0', 0).with("")}, fails: "mtime: malformed number"},
		{name: "PAX records win over the header", raw: [][]byte{paxHeader('x', "path=real/name", "size=3", "uid=100000", "gid=2097152", "mtime=-1.5"), newRawTar("short", '0', 0).with("abc")}, want: "real d 0755 @0.000000000\nreal/name f 0644 100000:2097152 @-2.500000000 \"abc\"\n"},
		{name: "a later PAX record wins", raw: [][]byte{paxHeader('x', "path=a", "path=b", "SCHILY.xattr.user.k=1", "SCHILY.xattr.user.k=2"), newRawTar("short", '0', 0).with("")}, want: "b f 0644 \"\" user.k=\"2\"\n"},
		{name: "an empty xattr value", raw: [][]byte{paxHeader('x', "SCHILY.xattr.user.e="), newRawTar("f", '0', 0).with("")}, want: "f f 0644 \"\" user.e=\"\"\n"},
		{name: "xattrs of no name space", raw: [][]byte{paxHeader('x', "SCHILY.xattr.foo=1", "SCHILY.xattr.user.=2", "SCHILY.xattr.system.nfs4_acl=3", "LIBARCHIVE.xattr.user.b=MQ"), newRawTar("f", '0', 0).with("")}, want: "f f 0644 \"\"\n"},
		{name: "an xattr name of 256 bytes", raw: [][]byte{paxHeader('x', "SCHILY.xattr.user."+strings.Repeat("n", 251)+"=1"), newRawTar("f", '0', 0).with("")}, fails: "name of more than 255 bytes"},
		{name: "an xattr of more than 64 KiB", raw: [][]byte{paxHeader('x', "SCHILY.xattr.user.n="+strings.Repeat("v", 65537)), newRawTar("f", '0', 0).with("")}, fails: `"user.n" of more than 65536 bytes`},
		{name: "xattrs in any order, the last of a name counts", raw: [][]byte{paxHeader('x', "SCHILY.xattr.user.b=2", "SCHILY.xattr.user.c=3", "SCHILY.xattr.user.a=1", "SCHILY.xattr.user.c=4"), newRawTar("f", '0', 0).with("")}, want: "f f 0644 \"\" user.a=\"1\" user.b=\"2\" user.c=\"4\"\n"},
		{name: "xattr names of more than 64 KiB together", raw: [][]byte{paxHeader('x', longXattrs(257)...), newRawTar("f", '0', 0).with("")}, fails: "names of extended attributes of more than 65536 bytes"},
		{name: "a PAX path with a NUL", raw: [][]byte{paxHeader('x', "path=a\x00b"), newRawTar("f", '0', 0).with("")}, fails: "NUL byte in name"},
		{name: "a PAX record that is cut", raw: [][]byte{newRawTar("x", 'x', 9).with("20 path=a")}, fails: "malformed PAX record"},
		{name: "an extended header of more than 1 MiB", raw: [][]byte{newRawTar("x", 'x', 1<<20+1).with("")}, fails: "extended header of 1048577 bytes"},
		{name: "GNU long names win over PAX", raw: [][]byte{paxHeader('x', "path=pax"), newRawTar("././@LongLink", 'L', 4).with("gnu\x00"), newRawTar("short", '0', 0).with("")}, want: "gnu f 0644 \"\"\n"},
		{name: "a base-256 size", raw: [][]byte{gnuHeader("f", '0', 0).set(fieldSize, base256Field(3, 12)).with("abc")}, want: "f f 0644 \"abc\"\n"},
		{name: "a base-256 time before the epoch", raw: [][]byte{gnuHeader("f", '0', 0).set(fieldMtime, base256Field(-5, 12)).with("")}, want: "f f 0644 @-5.000000000 \"\"\n"},
		{name: "a huge size", raw: [][]byte{gnuHeader("f", '0', 0).set(fieldSize, base256Field(1<<62, 12)).with("")}, fails: "unexpected end"},
		{name: "a size beyond 63 bits", raw: [][]byte{gnuHeader("f", '0', 0).set(fieldSize, base256Field(1<<63-1, 12)).with("")}, fails: "size 9223372036854775807"},
		{name: "a negative size", raw: [][]byte{gnuHeader("f", '0', 0).set(fieldSize, base256Field(-1, 12)).with("")}, fails: "negative size"},
		{name: "a negative uid", raw: [][]byte{gnuHeader("f", '0', 0).set(fieldUID, base256Field(-1, 8)).with("")}, fails: "uid -1 is out of range"},
		{name: "a number that is none", raw: [][]byte{newRawTar("f", '0', 0).set(fieldMode, "12x4567\x00").with("")}, fails: "malformed number"},
		{name: "a wrong checksum", raw: [][]byte{append([]byte("g"), newRawTar("f", '0', 0).with("")[1:]...)}, fails: "offset 0 of the tar stream: malformed tar header: checksum mismatch"},
		{name: "a lone block of zeros", raw: [][]byte{make([]byte, tarBlock)}, fails: "a lone block of zeros"},
		{name: "a device number out of range", raw: [][]byte{newRawTar("f", '3', 0).set(fieldMajor, "0010000\x00").with("")}, fails: "device number 4096:0 is out of range"},
		{name: "a symlink without a target", raw: [][]byte{newRawTar("f", '2', 0).with("")}, fails: "symbolic link without a target"},
		{name: "device fields of other types are not looked at", raw: [][]byte{newRawTar("f", '0', 0).set(fieldMajor, "garbage!").with("")}, want: "f f 0644 \"\"\n"},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			stream := append(bytes.Join(c.raw, nil), plain...)
			im, err := imageOf(t, false, append(stream, make([]byte, 2*tarBlock)...))
			if c.fails != "" {
				if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("got %v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Replace(dump(walkImage(t, im)), after, "", 1)
			if want := untouchedRoot + c.want; got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Whatever archive/tar reads from these streams, we find too, and the data where
// we say.
func TestScanAgreesWithArchiveTar(t *testing.T) {
	for _, c := range oddLayers {
		for i, stream := range c.layers(t) {
			toc, err := scanTar(bytes.NewReader(stream))
			if err != nil {
				continue
			}
			t.Run(fmt.Sprint(c.name, " ", i), func(t *testing.T) { compareWithArchiveTar(t, toc, stream) })
		}
	}
}

func compareWithArchiveTar(t *testing.T, toc *toc, stream []byte) {
	r := tar.NewReader(bytes.NewReader(stream))
	cur := toc.cursor()
	for {
		h, err := r.Next()
		var e tocEntry
		ok, cerr := cur.next(&e)
		if cerr != nil {
			t.Fatal(cerr)
		}
		if errors.Is(err, io.EOF) {
			if ok {
				t.Fatalf("archive/tar has no %q", e.path)
			}
			return
		}
		if err != nil || !ok {
			t.Fatalf("archive/tar: %v; we: %t", err, ok)
		}
		clean := strings.TrimPrefix(filepath.Clean("/"+h.Name), "/")
		if e.kind == kindWhiteout || e.kind == kindOpaque {
			continue
		}
		if string(e.path) != clean {
			t.Fatalf("path %q, archive/tar %q", e.path, clean)
		}
		if e.kind == kindHardlink {
			continue
		}
		if int(e.uid) != h.Uid || int(e.gid) != h.Gid || e.mtime.Sec != h.ModTime.Unix() || int(e.mtime.Nsec) != h.ModTime.Nanosecond() {
			t.Errorf("%q: %+v, archive/tar %+v", clean, e, h)
		}
		if e.kind != kindRegular {
			continue
		}
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := stream[e.pos : e.pos+e.size]; !e.sparse && !bytes.Equal(got, want) {
			t.Errorf("%q: content differs", clean)
		}
	}
}

// GNU tar writes four kinds of sparse files.
func TestSparseFilesOfEveryFormatReadBack(t *testing.T) {
	gnutar, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	files := map[string]map[int64]string{
		"middle":  {1 << 20: "data in the middle"},
		"many":    {},
		"start":   {0: strings.Repeat("s", 5000)},
		"nothing": {},
		"dense":   {0: "not sparse at all"},
	}
	for i := range int64(60) { // more than the old format's first and second block hold
		files["many"][i*128<<10] = fmt.Sprintf("piece %d", i)
	}
	for name, parts := range files {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size := int64(8 << 20)
		if name == "dense" {
			size = 17
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for off, s := range parts {
			if _, err := f.WriteAt([]byte(s), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range [][]string{
		{"--format=gnu"},
		{"--format=posix", "--sparse-version=0.0"},
		{"--format=posix", "--sparse-version=0.1"},
		{"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(format, " "), func(t *testing.T) {
			args := append([]string{"-c", "-S", "-C", dir}, format...)
			stream, err := exec.Command(gnutar, append(args, ".")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(stream) > 4<<20 {
				t.Skip("the file system has no holes")
			}
			im, err := imageOf(t, false, stream)
			if err != nil {
				t.Fatal(err)
			}
			for name := range files {
				checkSparse(t, im, name, filepath.Join(dir, name))
			}
		})
	}
}

func checkSparse(t *testing.T, im *Image, name, disk string) {
	t.Helper()
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	ino, err := im.LookupPath(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := im.Open(ino)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: content differs (%d of %d bytes, %v)", name, len(got), len(want), err)
	}
	if len(want) < 1000 {
		if err := iotest.TestReader(io.NewSectionReader(f, 0, f.Size()), want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, r := range [][2]int64{{1<<20 - 3, 10}, {128<<10 + 2, 300 << 10}, {8<<20 - 4, 4}, {5, 1}} {
		if r[0] >= f.Size() {
			continue
		}
		p := bytes.Repeat([]byte{0xee}, int(r[1]))
		n, err := f.ReadAt(p, r[0])
		end := min(r[0]+r[1], f.Size())
		if err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], want[r[0]:end]) {
			t.Errorf("%s: read %d at %d: %d, %v", name, r[1], r[0], n, err)
		}
	}
}

func TestBrokenSparseMapsAreRefused(t *testing.T) {
	sparse := func(records ...string) []byte { return paxHeader('x', records...) }
	file := func(data string) []byte { return newRawTar("f", '0', int64(len(data))).with(data) }
	map10 := func(m string) []byte {
		m += strings.Repeat("\x00", -len(m)&(tarBlock-1))
		return append(sparse("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=100"), file(m+"0123456789")...)
	}
	for name, stream := range map[string][]byte{
		"overlapping runs":             map10("2\n0\n5\n4\n5\n"),
		"a run beyond the end":         map10("1\n95\n10\n"),
		"more data than is stored":     map10("1\n0\n11\n"),
		"a count beyond the map":       map10("9\n0\n5\n"),
		"a huge count":                 map10("99999999999\n"),
		"no number":                    map10("x\n"),
		"a map longer than the entry":  append(sparse("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1"), file("1\n")...),
		"an unknown version":           append(sparse("GNU.sparse.major=2", "GNU.sparse.minor=0", "GNU.sparse.realsize=1"), file("")...),
		"no size":                      append(sparse("GNU.sparse.map=0,1", "GNU.sparse.numblocks=1"), file("x")...),
		"an odd map":                   append(sparse("GNU.sparse.size=9", "GNU.sparse.map=0,1,2", "GNU.sparse.numblocks=1"), file("x")...),
		"lengths before offsets":       append(sparse("GNU.sparse.size=9", "GNU.sparse.numblocks=1", "GNU.sparse.numbytes=1", "GNU.sparse.offset=0"), file("x")...),
		"old sparse without the magic": newRawTar("f", 'S', 0).with(""),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := scanTar(bytes.NewReader(append(stream, make([]byte, 1024)...))); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The scanner takes what a reader gives in any portions, and passes its errors on.
func TestScanReadsAnyReader(t *testing.T) {
	stream := tarOf(t, tDir("d"), tReg("d/f", strings.Repeat("x", 70000)), tReg("g", "y").xattr("user.a", "b"))
	want, err := ScanTOC(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"one byte at a time": iotest.OneByteReader(bytes.NewReader(stream)),
		"half at a time":     iotest.HalfReader(bytes.NewReader(stream)),
		"data with EOF":      iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		if got, err := ScanTOC(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: differs, %v", name, err)
		}
	}
	broken := errors.New("broken")
	for n := range len(stream) {
		if n%499 != 0 {
			continue
		}
		_, err := scanTar(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrFormat) {
			t.Fatalf("broken after %d bytes: %v", n, err)
		}
	}
}

package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func recordsOf(recs ...Record) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for _, r := range recs {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func recReg(path, data string) Record {
	return Record{
		Path: path, Content: strings.NewReader(data),
		Attr: Attr{Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: int64(len(data)), Mtime: Timespec{Sec: 1700000000, Nsec: 5}},
	}
}

func recDir(path string) Record {
	return Record{Path: path, Attr: Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 2, Size: DirSize, Mtime: Timespec{Sec: 1700000000}}}
}

func recOf(path string, mode uint32) Record {
	return Record{Path: path, Attr: Attr{Mode: mode, Nlink: 1, Mtime: Timespec{Sec: 1700000000}}}
}

func writeRecords(t *testing.T, opt DiffOptions, recs ...Record) (stream, toc []byte) {
	t.Helper()
	var b bytes.Buffer
	toc, err := WriteDiff(&b, recordsOf(recs...), opt)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), toc
}

func headersOf(t *testing.T, stream []byte) []*tar.Header {
	t.Helper()
	var out []*tar.Header
	for r := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h)
	}
}

func TestALayerHoldsEachKindOfRecord(t *testing.T) {
	dev := recOf("dev/null", unix.S_IFCHR|0o666)
	dev.Attr.Rdev = unix.Mkdev(1, 3)
	blk := recOf("dev/sda", unix.S_IFBLK|0o660)
	blk.Attr.Rdev = unix.Mkdev(8, 259)
	sym := recOf("etc/link", unix.S_IFLNK|0o777)
	sym.Symlink = "../a b"
	first := recReg("etc/one", "content")
	first.Attr.Nlink = 2
	first.Attr.Mode |= unix.S_ISUID
	first.Attr.UID, first.Attr.GID = 1000, 1001
	second := Record{Path: "etc/two", Link: "etc/one", Attr: first.Attr}
	caps := recReg("usr/ping", "x")
	caps.Xattrs = map[string]string{"security.capability": "\x01\x00=\n", "user.b": "2", "user.a": "1"}

	stream, _ := writeRecords(t, DiffOptions{},
		recDir("."), recDir("dev"), dev, blk, recOf("dev/zpipe", unix.S_IFIFO|0o600),
		recDir("etc"), Record{Path: "etc/gone", Whiteout: true}, sym, first, second,
		recDir("opt"), Record{Path: "opt", Opaque: true}, recReg("opt/empty", ""),
		Record{Path: "srv", Opaque: true}, recDir("srv"), caps, Record{Path: "var", Whiteout: true})

	var got []string
	for _, h := range headersOf(t, stream) {
		got = append(got, fmt.Sprintf("%c %s %s %o %d:%d %d %d:%d %d %v", h.Typeflag, h.Name, h.Linkname, h.Mode,
			h.Uid, h.Gid, h.Size, h.Devmajor, h.Devminor, h.ModTime.UnixNano(), h.Format))
		if h.Uname != "" || h.Gname != "" {
			t.Errorf("%s has the names %q and %q", h.Name, h.Uname, h.Gname)
		}
	}
	want := []string{
		"5 .  755 0:0 0 0:0 1700000000000000000 USTAR",
		"5 dev/  755 0:0 0 0:0 1700000000000000000 USTAR",
		"3 dev/null  666 0:0 0 1:3 1700000000000000000 USTAR",
		"4 dev/sda  660 0:0 0 8:259 1700000000000000000 USTAR",
		"6 dev/zpipe  600 0:0 0 0:0 1700000000000000000 USTAR",
		"5 etc/  755 0:0 0 0:0 1700000000000000000 USTAR",
		"0 etc/.wh.gone  0 0:0 0 0:0 0 USTAR",
		"2 etc/link ../a b 777 0:0 0 0:0 1700000000000000000 USTAR",
		"0 etc/one  4644 1000:1001 7 0:0 1700000000000000000 USTAR",
		"1 etc/two etc/one 4644 1000:1001 0 0:0 1700000000000000000 USTAR",
		"5 opt/  755 0:0 0 0:0 1700000000000000000 USTAR",
		"0 opt/.wh..wh..opq  0 0:0 0 0:0 0 USTAR",
		"0 opt/empty  644 0:0 0 0:0 1700000000000000000 USTAR",
		"0 srv/.wh..wh..opq  0 0:0 0 0:0 0 USTAR",
		"5 srv/  755 0:0 0 0:0 1700000000000000000 USTAR",
		"0 usr/ping  644 0:0 1 0:0 1700000000000000000 PAX",
		"0 .wh.var  0 0:0 0 0:0 0 USTAR",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	x := headersOf(t, stream)[15].PAXRecords
	if x[paxXattr+"security.capability"] != "\x01\x00=\n" || x[paxXattr+"user.a"] != "1" {
		t.Errorf("extended attributes %q", x)
	}
}

func TestWhatUstarCannotHoldMakesAnEntryPAX(t *testing.T) {
	long := strings.Repeat("d/", 80) + strings.Repeat("n", 101)
	longLink := recOf("b", unix.S_IFLNK|0o777)
	longLink.Symlink = strings.Repeat("t", 200)
	ids := recReg("c", "")
	ids.Attr.UID, ids.Attr.GID = 1<<31, 1<<32-2
	old := recReg("e", "")
	old.Attr.Mtime = Timespec{Sec: -3}
	raw := recReg("\xff\xfe", "x")
	split := recReg(strings.Repeat("s", 150)+"/"+strings.Repeat("t", 100), "")
	stream, _ := writeRecords(t, DiffOptions{}, longLink, ids, recReg(long, "hello"), old, split, raw)
	for i, want := range []struct {
		name   string
		format tar.Format
	}{{"b", tar.FormatPAX}, {"c", tar.FormatPAX}, {long, tar.FormatPAX}, {"e", tar.FormatPAX}, {split.Path, tar.FormatUSTAR}, {"\xff\xfe", tar.FormatPAX}} {
		h := headersOf(t, stream)[i]
		if h.Name != want.name || h.Format != want.format {
			t.Errorf("entry %d is %q in %v, want %q in %v", i, h.Name, h.Format, want.name, want.format)
		}
	}
	h := headersOf(t, stream)
	if h[0].Linkname != longLink.Symlink || h[1].Uid != 1<<31 || h[1].Gid != 1<<32-2 || h[3].ModTime.Unix() != -3 {
		t.Errorf("values are lost: %+v %+v %+v", h[0], h[1], h[3])
	}
}

func TestAFileOfMoreThanEightGiBIsStoredWithItsSize(t *testing.T) {
	big := recReg("big", "")
	big.Attr.Size = 8<<30 + 1
	h, err := newHeader(&big, nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if h, err = tar.NewReader(&b).Next(); err != nil || h.Size != 8<<30+1 || h.Format != tar.FormatPAX {
		t.Errorf("read back %+v, %v", h, err)
	}
}

func TestTheTableOfContentsIsThatOfAScan(t *testing.T) {
	stream, toc := writeRecords(t, DiffOptions{}, recDir("a"), recReg("a/b", strings.Repeat("x", 1<<20)),
		recReg("a/c", "1"), Record{Path: "a/d", Whiteout: true}, recDir("a-b"))
	want, err := ScanTOC(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(toc, want) {
		t.Error("another table of contents than a scan gives")
	}
}

func TestTheSameRecordsGiveTheSameBytes(t *testing.T) {
	x := map[string]string{}
	for i := range 20 {
		x[fmt.Sprintf("user.%d", i)] = "v"
	}
	r := recReg("f", "data")
	r.Xattrs = x
	a, _ := writeRecords(t, DiffOptions{}, r)
	r.Content = strings.NewReader("data")
	b, _ := writeRecords(t, DiffOptions{}, r)
	if !bytes.Equal(a, b) {
		t.Error("two different streams")
	}
}

func TestNoRecordsGiveAnEmptyTar(t *testing.T) {
	stream, _ := writeRecords(t, DiffOptions{})
	if len(stream) != 1024 || len(headersOf(t, stream)) != 0 {
		t.Errorf("%d bytes", len(stream))
	}
}

func TestAnEpochClampsLaterTimesOnly(t *testing.T) {
	epoch := time.Unix(1600000000, 0)
	early := recReg("a", "")
	early.Attr.Mtime.Sec = 1500000000
	stream, _ := writeRecords(t, DiffOptions{Epoch: &epoch}, early, recReg("b", ""))
	h := headersOf(t, stream)
	if h[0].ModTime.Unix() != 1500000000 || h[1].ModTime.Unix() != 1600000000 {
		t.Errorf("times %v and %v", h[0].ModTime, h[1].ModTime)
	}
}

func TestASocketIsSkippedWithANote(t *testing.T) {
	var skipped []string
	stream, _ := writeRecords(t, DiffOptions{Skipped: func(p string) { skipped = append(skipped, p) }},
		recDir("run"), recOf("run/s", unix.S_IFSOCK|0o755), recReg("run/t", ""))
	if len(headersOf(t, stream)) != 2 || !slices.Equal(skipped, []string{"run/s"}) {
		t.Errorf("%d entries, %q skipped", len(headersOf(t, stream)), skipped)
	}
}

func TestARecordThatWouldLieIsRefused(t *testing.T) {
	link := func(path, to string) Record { return Record{Path: path, Link: to, Attr: recReg("", "").Attr} }
	multi := recReg("b", "")
	multi.Attr.Nlink = 2
	xattr := func(name, value string) Record {
		r := recReg("f", "")
		r.Xattrs = map[string]string{name: value}
		return r
	}
	short, long, none := recReg("f", "12345"), recReg("f", "12345"), recReg("f", "12345")
	short.Attr.Size, long.Attr.Size, none.Content = 6, 4, nil
	for name, c := range map[string]struct {
		recs []Record
		want error
	}{
		"two records of one path":            {[]Record{recReg("a", ""), recReg("a", "")}, ErrRecord},
		"content before its directory":       {[]Record{recReg("a/b", ""), recDir("a")}, ErrRecord},
		"a name between directory and child": {[]Record{recDir("a"), recReg("a-b", ""), recReg("a/b", "")}, ErrRecord},
		"two opaque markers":                 {[]Record{{Path: "a", Opaque: true}, {Path: "a", Opaque: true}}, ErrRecord},
		"an opaque marker before a file":     {[]Record{{Path: "a", Opaque: true}, recReg("a", "")}, ErrRecord},
		"an opaque marker of a file":         {[]Record{recReg("a", ""), {Path: "a", Opaque: true}}, ErrRecord},
		"a slash at the end":                 {[]Record{recDir("a/")}, ErrRecord},
		"an absolute path":                   {[]Record{recDir("/a")}, ErrRecord},
		"a path upwards":                     {[]Record{recDir("a/../b")}, ErrRecord},
		"no path":                            {[]Record{recDir("")}, ErrRecord},
		"a NUL":                              {[]Record{recDir("a\x00b")}, ErrRecord},
		"a root that is a file":              {[]Record{recReg(".", "")}, ErrRecord},
		"a root that is gone":                {[]Record{{Path: ".", Whiteout: true}}, ErrRecord},
		"two kinds at once":                  {[]Record{{Path: "a", Whiteout: true, Opaque: true}}, ErrRecord},
		"a name like a whiteout's":           {[]Record{recReg("a/.wh.b", "")}, ErrReservedName},
		"a directory's name like a whiteout": {[]Record{recDir(".wh.b")}, ErrReservedName},
		"a whiteout of a whiteout's name":    {[]Record{{Path: ".wh.b", Whiteout: true}}, ErrReservedName},
		"a hard link to what is not there":   {[]Record{link("c", "b")}, ErrRecord},
		"a hard link to what has one name":   {[]Record{recReg("b", ""), link("c", "b")}, ErrRecord},
		"a hard link to a directory":         {[]Record{recDir("b"), link("c", "b")}, ErrRecord},
		"a hard link to a later name":        {[]Record{link("a", "b"), multi}, ErrRecord},
		"an attribute without a value":       {[]Record{xattr("user.a", "")}, ErrRecord},
		"an attribute with = in its name":    {[]Record{xattr("user.a=b", "1")}, ErrRecord},
		"a body that ends early":             {[]Record{short}, ErrBodySize},
		"a body that ends early, then more":  {[]Record{short, recReg("g", "")}, ErrBodySize},
		"a body that goes on":                {[]Record{long}, ErrBodySize},
		"a body that is missing":             {[]Record{none}, ErrRecord},
		"an object of no known type":         {[]Record{recOf("f", 0o644)}, ErrRecord},
		"a path longer than a tree can hold": {[]Record{recDir(strings.Repeat("a/", 3000) + "a")}, ErrRecord},
		"a name longer than a file can have": {[]Record{recDir(strings.Repeat("a", 256))}, ErrRecord},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := WriteDiff(io.Discard, recordsOf(c.recs...), DiffOptions{}); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestAnErrorOfTheRecordsOrTheWriterEndsTheWriting(t *testing.T) {
	boom := errors.New("boom")
	_, err := WriteDiff(io.Discard, func(yield func(Record, error) bool) {
		if yield(recDir("a"), nil) && yield(Record{}, boom) {
			t.Error("the writing went on")
		}
	}, DiffOptions{})
	if !errors.Is(err, boom) {
		t.Errorf("error of the records: %v", err)
	}
	body := recReg("f", "123")
	body.Content = io.MultiReader(strings.NewReader("1"), errReader{boom})
	if _, err = WriteDiff(io.Discard, recordsOf(body), DiffOptions{}); !errors.Is(err, boom) {
		t.Errorf("error of a body: %v", err)
	}
	if _, err = WriteDiff(errWriter{boom}, recordsOf(recDir("a")), DiffOptions{}); !errors.Is(err, boom) {
		t.Errorf("error of the writer: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type errWriter struct{ err error }

func (w errWriter) Write([]byte) (int, error) { return 0, w.err }

func TestPathsAreOrderedByTheirComponents(t *testing.T) {
	want := []string{".", "a", "a/a", "a/b", "a/b/c", "a/b-", "a\x01", "a!", "a-", "a-/x", "a.b", "aa", "b", "\xff"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, ComparePaths)
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for i, a := range want {
		for j, b := range want {
			if c := ComparePaths(a, b); (c < 0) != (i < j) || (c == 0) != (i == j) {
				t.Errorf("ComparePaths(%q, %q) = %d", a, b, c)
			}
		}
	}
}

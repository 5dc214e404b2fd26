package imagetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Wild are the layers as all kinds of programs write and compress them. Of one stack it
// gives others each time.
func (s *Stack) Wild() ([]Layer, error) {
	var out []Layer
	for _, nodes := range s.layers {
		w := &dialect{r: s.rnd}
		plain := w.stream(nodes)
		l, err := wildly(s.rnd, plain)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// Tar is the first layer's stream, in a dialect.
func (s *Stack) Tar() []byte { return (&dialect{r: s.rnd}).stream(s.layers[0]) }

const block = 512

// Fields of a header block (tar(5)): offset and length.
type field struct{ off, n int }

var (
	fieldName, fieldMode        = field{0, 100}, field{100, 8}
	fieldUID, fieldGID          = field{108, 8}, field{116, 8}
	fieldSize, fieldMtime       = field{124, 12}, field{136, 12}
	fieldSum, fieldType         = field{148, 8}, field{156, 1}
	fieldLink, fieldMagic       = field{157, 100}, field{257, 8}
	fieldUname, fieldGname      = field{265, 32}, field{297, 32}
	fieldMajor, fieldMinor      = field{329, 8}, field{337, 8}
	fieldPrefix, fieldStarTimes = field{345, 155}, field{476, 24}
	fieldStarEnd                = field{508, 4}
	fieldMore, fieldRealSize    = field{482, 1}, field{483, 12}
)

const offsetPairs = 386 // of an old GNU sparse header

// dialect writes a stream, each entry in a format of its own.
type dialect struct {
	r       *rand.Rand
	out     bytes.Buffer
	h       [block]byte
	style   string // v7, ustar, star, gnu
	records []string
}

func (w *dialect) stream(nodes []node) []byte {
	if w.r.IntN(4) == 0 {
		w.begin("ustar", "pax_global_header", 'g')
		w.body([]byte(record("comment=0123456789abcdef")))
	}
	for _, n := range nodes {
		w.entry(n)
	}
	switch w.r.IntN(6) {
	case 0: // some old writers, and cut pipes
	case 1:
		w.out.Write(make([]byte, block))
	case 2: // tar's blocking factor
		w.out.Write(make([]byte, 2*block+(10240-(w.out.Len()+2*block)%10240)%10240))
	case 3:
		w.out.Write(make([]byte, 2*block))
		w.out.WriteString("what was on the tape before")
	default:
		w.out.Write(make([]byte, 2*block))
	}
	return w.out.Bytes()
}

// begin makes a header of zeros.
func (w *dialect) begin(style, name string, kind byte) {
	w.h, w.style = [block]byte{}, style
	w.put(fieldName, name)
	w.h[fieldType.off] = kind
	switch style {
	case "ustar", "star":
		w.put(fieldMagic, "ustar\x0000")
	case "gnu":
		w.put(fieldMagic, "ustar  \x00")
	}
	if style == "star" {
		w.put(fieldStarTimes, "15000000000 15000000001 ")
		w.put(fieldStarEnd, "tar\x00")
	}
}

func (w *dialect) put(f field, v string) { copy(w.h[f.off:f.off+f.n], v) }

// body writes the header, for so many bytes of data, and the data.
func (w *dialect) body(data []byte) {
	if w.h[fieldSize.off] == 0 {
		w.number(fieldSize, "", int64(len(data)))
	}
	w.put(fieldSum, "        ")
	sum := 0
	for _, c := range w.h {
		sum += int(c)
	}
	w.put(fieldSum, pick(w.r, fmt.Sprintf("%06o\x00 ", sum), fmt.Sprintf("%07o\x00", sum), fmt.Sprintf("%6o \x00", sum)))
	w.out.Write(w.h[:])
	w.data(data)
}

func (w *dialect) data(b []byte) {
	w.out.Write(b)
	w.out.Write(make([]byte, -len(b)&(block-1)))
}

// number sets a field in octal digits or, where they are too few, in a record or in
// base 256.
func (w *dialect) number(f field, key string, v int64) {
	fits := v >= 0 && v < 1<<(3*(f.n-1))
	pax := key != "" && w.style != "gnu" && w.style != "v7"
	switch {
	case pax && (!fits || w.r.IntN(8) == 0):
		w.records = append(w.records, fmt.Sprintf("%s=%d", key, v))
		w.put(f, fmt.Sprintf("%0*o\x00", f.n-1, w.r.IntN(64)))
	case !fits, w.style == "gnu" && w.r.IntN(8) == 0:
		for i := f.off + f.n - 1; i >= f.off; i-- {
			w.h[i] = byte(v)
			v >>= 8
		}
		w.h[f.off] |= 0x80
	default:
		digits := strconv.FormatInt(v, 8)
		zeros := strings.Repeat("0", f.n-1-len(digits))
		w.put(f, pick(w.r, zeros+digits+"\x00", zeros+digits+" ", strings.Repeat(" ", len(zeros))+digits+"\x00", digits+" \x00"))
	}
}

// record is a line of an extended header.
func record(s string) string {
	for n := len(s) + 3; ; n++ {
		if line := fmt.Sprintf("%d %s\n", n, s); len(line) == n {
			return line
		}
	}
}

func (n *node) old() bool {
	switch n.kind {
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink:
		return len(n.name) < 100 && len(n.link) < 100 && n.uid < 1<<21 && n.gid < 1<<21 && n.mtime.Unix() >= 0
	}
	return false
}

// entry writes one entry, with the headers before it.
func (w *dialect) entry(n node) {
	w.records = nil
	style := pick(w.r, "ustar", "ustar", "star", "gnu", "gnu", "v7")
	if n.mtime.Nanosecond() != 0 || len(n.xattrs) > 0 || style == "v7" && !n.old() {
		style = "ustar"
	}
	sparse := ""
	if n.data != nil && w.r.IntN(4) > 0 {
		if sparse = pick(w.r, "0.0", "0.1", "1.0"); style == "gnu" {
			sparse = "old"
		} else {
			style = "ustar"
		}
	}
	kind := n.kind
	switch {
	case n.kind == tar.TypeReg && sparse == "" && !strings.HasSuffix(n.name, "/"):
		kind = pick[byte](w.r, '0', '0', 0, '7')
		if style == "v7" {
			kind = 0
		}
	case n.kind == tar.TypeDir && style == "v7":
		kind = 0
		n.name = strings.TrimSuffix(n.name, "/") + "/"
	case sparse == "old":
		kind = 'S'
	}
	w.begin(style, "", kind)
	w.numbers(&n)
	body := n.body
	if sparse != "" {
		body = w.sparse(sparse, &n)
	}
	if n.kind == tar.TypeLink && w.r.IntN(2) == 0 {
		w.put(fieldSize, "00000001234\x00") // the file's, of which nothing follows
	}
	var before []byte
	if sparse != "0.1" && sparse != "1.0" {
		before = w.names(&n)
	}
	w.extras(&n)
	header := w.h
	for _, kind := range before {
		w.begin("gnu", "././@LongLink", kind)
		w.body([]byte(map[byte]string{'L': n.name, 'K': n.link}[kind] + "\x00"))
	}
	if len(w.records) > 0 {
		text := ""
		for _, r := range w.records {
			text += record(r)
		}
		w.begin("ustar", "PaxHeaders/entry", 'x')
		w.body([]byte(text))
	}
	w.h, w.style = header, style
	if sparse == "old" {
		w.oldSparse(n.data, len(n.body), body)
		return
	}
	w.body(body)
}

func (w *dialect) numbers(n *node) {
	mode := n.mode
	if w.r.IntN(3) == 0 { // of struct stat, as some programs write it
		mode |= map[byte]int64{tar.TypeReg: 0o100000, tar.TypeDir: 0o40000, tar.TypeSymlink: 0o120000}[n.kind]
	}
	w.number(fieldMode, "", mode)
	w.number(fieldUID, "uid", int64(n.uid))
	w.number(fieldGID, "gid", int64(n.gid))
	if nsec := n.mtime.Nanosecond(); nsec != 0 {
		sec, sign := n.mtime.Unix(), ""
		if sec < 0 {
			sec, nsec, sign = -sec-1, 1_000_000_000-nsec, "-"
		}
		w.records = append(w.records, fmt.Sprintf("mtime=%s%d.%s", sign, sec, strings.TrimRight(fmt.Sprintf("%09d", nsec), "0")))
		w.number(fieldMtime, "", max(n.mtime.Unix(), 0))
	} else {
		w.number(fieldMtime, "mtime", n.mtime.Unix())
	}
	if w.style != "v7" {
		w.put(fieldUname, pick(w.r, "", "root", "nobody knows"))
		w.put(fieldGname, pick(w.r, "", "root"))
		w.number(fieldMajor, "", n.major)
		w.number(fieldMinor, "", n.minor)
	}
}

// names sets the name and the link's, and says which long ones come before: L, K.
func (w *dialect) names(n *node) (before []byte) {
	long := func(f field, typeflag byte, key, v string) {
		switch {
		case len(v) <= f.n && w.r.IntN(8) > 0:
			w.put(f, v)
		case w.style == "gnu":
			w.put(f, v[:min(len(v), f.n)])
			before = append(before, typeflag)
		default:
			w.put(f, pick(w.r, "", v[:min(len(v), f.n)]))
			w.records = append(w.records, key+"="+v)
		}
	}
	long(fieldLink, 'K', "linkpath", n.link)
	prefix := fieldPrefix.n
	if w.style == "star" {
		prefix = 131
	}
	if w.style == "ustar" || w.style == "star" {
		if at := strings.LastIndexByte(n.name[:min(len(n.name), prefix+1)], '/'); at > 0 && len(n.name)-at-1 <= fieldName.n && at+1 < len(n.name) && w.r.IntN(3) > 0 {
			w.put(fieldPrefix, n.name[:at])
			w.put(fieldName, n.name[at+1:])
			return before
		}
	}
	if w.style == "v7" {
		w.put(fieldName, n.name)
		return before
	}
	long(fieldName, 'L', "path", n.name)
	return before
}

// extras are records that say no more than the entry, or what nobody reads.
func (w *dialect) extras(n *node) {
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		if w.r.IntN(3) == 0 { // the last one counts
			w.records = append(w.records, "SCHILY.xattr."+name+"=an earlier one")
		}
		w.records = append(w.records, "SCHILY.xattr."+name+"="+n.xattrs[name])
	}
	if len(w.records) == 0 && (w.style != "ustar" || w.r.IntN(4) > 0) {
		return
	}
	for _, r := range []string{
		"atime=1500000000.5", "ctime=1500000000", "comment=none", "SCHILY.dev=5", "SCHILY.ino=17", "SCHILY.nlink=3", "charset=BINARY",
		"LIBARCHIVE.creationtime=1500000000", "VENDOR.key=a=b", "hdrcharset=BINARY", "uname=somebody",
	} {
		if w.r.IntN(4) == 0 {
			w.records = append(w.records, r)
		}
	}
	w.r.Shuffle(len(w.records), func(i, j int) {
		a, b := w.records[i], w.records[j]
		if !strings.HasPrefix(a, "SCHILY.xattr") && !strings.HasPrefix(b, "SCHILY.xattr") && !strings.HasPrefix(a, "GNU") && !strings.HasPrefix(b, "GNU") {
			w.records[i], w.records[j] = b, a
		}
	})
}

// sparse says where the data is, in records or in front of it, and gives what is stored.
func (w *dialect) sparse(version string, n *node) []byte {
	var packed, numbers []byte
	for _, e := range n.data {
		packed = append(packed, n.body[e.off:][:e.size]...)
		numbers = fmt.Appendf(numbers, "%d\n%d\n", e.off, e.size)
	}
	add := func(format string, args ...any) {
		w.records = append(w.records, "GNU.sparse."+fmt.Sprintf(format, args...))
	}
	switch version {
	case "0.0":
		add("size=%d", len(n.body))
		add("numblocks=%d", len(n.data))
		for _, e := range n.data {
			add("offset=%d", e.off)
			add("numbytes=%d", e.size)
		}
	case "0.1":
		add("size=%d", len(n.body))
		add("numblocks=%d", len(n.data))
		add("map=%s", strings.ReplaceAll(strings.TrimSuffix(string(numbers), "\n"), "\n", ","))
	case "1.0":
		add("major=1")
		add("minor=0")
		add("realsize=%d", len(n.body))
		head := append(fmt.Appendf(nil, "%d\n", len(n.data)), numbers...)
		head = append(head, make([]byte, -len(head)&(block-1))...)
		packed = append(head, packed...)
	}
	if version == "0.1" || version == "1.0" {
		add("name=%s", n.name)
		w.put(fieldName, "GNUSparseFile.0/file")
	}
	return packed
}

// oldSparse writes the header of an old GNU sparse file, the blocks that go on with its
// map, and the data.
func (w *dialect) oldSparse(data []extent, size int, packed []byte) {
	w.put(fieldRealSize, fmt.Sprintf("%011o\x00", size))
	pairs := func(b []byte, most int) {
		for i := range min(most, len(data)) {
			copy(b[24*i:], fmt.Sprintf("%011o\x00%011o\x00", data[i].off, data[i].size))
		}
		data = data[min(most, len(data)):]
	}
	pairs(w.h[offsetPairs:], 4)
	if len(data) > 0 {
		w.h[fieldMore.off] = 1
	}
	w.number(fieldSize, "", int64(len(packed)))
	w.body(nil)
	for len(data) > 0 {
		var b [block]byte
		pairs(b[:], 21)
		if len(data) > 0 {
			b[504] = 1
		}
		w.out.Write(b[:])
	}
	w.data(packed)
}

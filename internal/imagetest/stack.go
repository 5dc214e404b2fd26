package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// Stack is a random stack of layers that get in each other's way. The same entries are
// written plainly, by archive/tar and compress/gzip, and as what else writes layers does.
type Stack struct {
	layers [][]node
	rnd    *rand.Rand
}

// node is an entry, whatever it is written as.
type node struct {
	name         string // as it stands in the header
	kind         byte   // archive/tar's typeflag
	mode         int64
	uid, gid     int
	mtime        time.Time
	link         string
	body         []byte
	data         []extent // of a sparse file: what of body is no hole
	major, minor int64
	xattrs       map[string]string
}

type extent struct{ off, size int }

// RandomStack makes a stack of layers. An orderly one is a single layer in which each
// path has one entry, no whiteouts, and no path that leads through symlinks: any
// program that reads tar archives can extract it.
func RandomStack(seed uint64, layers int, orderly bool) *Stack {
	s := &Stack{rnd: rand.New(rand.NewPCG(seed, 11))}
	g := &growing{r: s.rnd, orderly: orderly, kinds: map[string]known{}}
	for g.layer = range layers {
		g.entries = nil
		if s.rnd.IntN(2) == 0 {
			g.add(g.node("./", tar.TypeDir))
		}
		for range 4 + s.rnd.IntN(30) {
			g.any()
		}
		s.layers = append(s.layers, g.entries)
	}
	return s
}

// growing is a stack in the making.
type growing struct {
	r       *rand.Rand
	orderly bool
	layer   int
	entries []node
	kinds   map[string]known // what is there, symlinks not followed
}

type known struct {
	kind  byte
	layer int
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// path is a cleaned path with no file above it.
func (g *growing) path() string {
	for {
		parts := make([]string, 1+g.r.IntN(4))
		for i := range parts {
			parts[i] = pick(g.r, "a", "b", "c", "d", "e", "ä", "\xff\xfe", "with space", "new\nline", "back\\slash", "..x", "wh.x", "=", "-x",
				strings.Repeat("l", 99), strings.Repeat("m", 100), strings.Repeat("n", 101), strings.Repeat("o", 255))
		}
		p := strings.Join(parts, "/")
		if !g.blocked(p) {
			return p
		}
	}
}

// blocked reports whether something above p is no directory, which stock umoci 0.4.7
// refuses unless it is a symlink to one.
func (g *growing) blocked(p string) bool {
	if g.orderly && g.kinds[p].kind != 0 {
		return true
	}
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		k, ok := g.kinds[dir]
		if ok && k.kind != tar.TypeDir && (g.orderly || k.kind != tar.TypeSymlink) {
			return true
		}
	}
	return false
}

// some is a path that is there and no directory, or "".
func (g *growing) some() string {
	var list []string
	for _, p := range slices.Sorted(maps.Keys(g.kinds)) {
		if g.kinds[p].kind != tar.TypeDir {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return ""
	}
	return list[g.r.IntN(len(list))]
}

// spelled is one of the ways in which a path stands in archives.
func (g *growing) spelled(p string) string {
	switch g.r.IntN(8) {
	case 0:
		return "./" + p
	case 1:
		return "/" + p
	case 2:
		return strings.ReplaceAll(p, "/", "//")
	case 3:
		return "./" + strings.ReplaceAll(p, "/", "/./")
	}
	return p
}

func (g *growing) any() {
	p := g.path()
	switch n := g.r.IntN(20); {
	case n < 6:
		g.file(p)
	case n < 9:
		n := g.node(p, tar.TypeDir)
		if g.r.IntN(3) > 0 {
			n.name += "/"
		}
		g.add(n)
	case n < 11:
		n := g.node(p, tar.TypeSymlink)
		n.link = pick(g.r, "", "/", "../", "../../../", "./") + g.path()
		g.add(n)
	case n < 14:
		if target := g.some(); target != "" && target != p && !strings.HasPrefix(target, p+"/") {
			n := g.node(p, tar.TypeLink)
			n.link = g.spelled(target)
			g.add(n)
		}
	case n < 15:
		g.add(g.node(p, tar.TypeFifo))
	case n < 16: // of majors that nothing answers, should something open them
		n := g.node(p, pick[byte](g.r, tar.TypeChar, tar.TypeBlock))
		n.major, n.minor = pick[int64](g.r, 0, 240, 4095), pick[int64](g.r, 0, 3, 255, 256, 1<<20-1)
		g.add(n)
	case g.orderly:
	case n < 19:
		if taken := slices.Sorted(maps.Keys(g.kinds)); len(taken) > 0 && g.r.IntN(4) > 0 {
			p = taken[g.r.IntN(len(taken))]
		}
		g.hide(path.Join(path.Dir(p), ".wh."+path.Base(p)), p, true)
	default:
		g.hide(path.Join(p, ".wh..wh..opq"), p, false)
	}
}

// hide adds a whiteout, or an opaque marker.
func (g *growing) hide(name, p string, itself bool) {
	g.entries = append(g.entries, node{name: g.spelled(name), kind: tar.TypeReg, mtime: time.Unix(0, 0)})
	for k, v := range g.kinds {
		if v.layer < g.layer && (itself && k == p || strings.HasPrefix(k, p+"/")) {
			delete(g.kinds, k)
		}
	}
}

func (g *growing) add(n node) {
	g.entries = append(g.entries, n)
	p := path.Clean("/" + n.name)[1:]
	if p == "" {
		return
	}
	if n.kind != tar.TypeDir {
		for k := range g.kinds {
			if strings.HasPrefix(k, p+"/") {
				delete(g.kinds, k)
			}
		}
	}
	for ; p != "."; p = path.Dir(p) {
		if k := g.kinds[p]; k.kind == tar.TypeSymlink && n.kind == tar.TypeDir {
			return // of which it is not known where it leads
		}
		g.kinds[p] = known{n.kind, g.layer}
		n.kind = tar.TypeDir
	}
}

// node is an entry of a kind, with metadata of all sorts.
func (g *growing) node(p string, kind byte) node {
	r := g.r
	n := node{
		name: g.spelled(p), kind: kind,
		mode: int64(pick(r, 0o644, 0o755, 0o600, 0, 0o4755, 0o2711, 0o1777, 0o7777)),
		uid:  pick(r, 0, 0, 1, 1000, 70000, 1<<21-1, 1<<21, 3_000_000_000), gid: pick(r, 0, 0, 5, 1<<21, 4_000_000_000),
		mtime: pick(r, time.Unix(0, 0), time.Unix(1_600_000_000, 0), time.Unix(1_600_000_001, 123_456_789), time.Unix(5_000_000_000, 500_000_000),
			time.Unix(-1, 0), time.Unix(-1_000_000_000, 999_999_999), time.Unix(-2, 1)),
		xattrs: map[string]string{},
	}
	if kind == tar.TypeDir && g.orderly {
		n.mode &^= 0o2000 // nor gives what was made in such a directory its mode
	}
	if kind == tar.TypeLink {
		return node{name: n.name, kind: kind, mode: 0o644, mtime: n.mtime}
	}
	if r.IntN(4) == 0 {
		n.xattrs["trusted.t"] = pick(r, "x", "a=b\nc\x00d", strings.Repeat("v", 1500))
	}
	if kind != tar.TypeReg && kind != tar.TypeDir || r.IntN(3) > 0 {
		return n
	}
	n.xattrs["user."+pick(r, "a", "ü", "long."+strings.Repeat("n", 100))] = pick(r, "1", "\xff\x00", "line\n")
	if r.IntN(3) == 0 {
		n.xattrs["system.posix_acl_access"] = acl(n.mode)
		if kind == tar.TypeDir && !g.orderly { // not every program takes away what is inherited
			n.xattrs["system.posix_acl_default"] = acl(0o750)
		}
	}
	if kind == tar.TypeReg && r.IntN(3) == 0 {
		n.xattrs["security.capability"] = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	}
	return n
}

// acl is one that goes with a mode: the owner's, user 1000's, the group's, the mask, all
// others' (acl(5), linux/posix_acl_xattr.h).
func acl(mode int64) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag  uint16
		perm int64
		id   uint32
	}{{1, mode >> 6, 1<<32 - 1}, {2, 4, 1000}, {4, 1, 1<<32 - 1}, {16, mode >> 3, 1<<32 - 1}, {32, mode, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(e.perm&7))
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// file adds a regular file, maybe a sparse one.
func (g *growing) file(p string) {
	n := g.node(p, tar.TypeReg)
	size := pick(g.r, 0, 1, 511, 512, 513, 5000, 70_000, 400_000)
	n.body = make([]byte, size)
	if g.r.IntN(4) > 0 {
		g.bytes(n.body)
		g.add(n)
		return
	}
	for at := g.r.IntN(3) * block; at < size; at += g.r.IntN(20) * block {
		e := extent{at, min((1+g.r.IntN(4))*block, size-at)}
		g.bytes(n.body[e.off:][:e.size])
		n.data = append(n.data, e)
		at += e.size
	}
	n.data = append(n.data, extent{size, 0}) // as GNU tar marks the end
	g.add(n)
}

// bytes are half of them such as compress.
func (g *growing) bytes(b []byte) {
	for i := range b {
		if b[i] = 'a' + byte(g.r.IntN(3)); i/256%2 == 0 {
			b[i] = byte(g.r.Uint32())
		}
	}
}

// Plain are the layers as archive/tar writes them, without holes.
func (s *Stack) Plain() ([]Layer, error) {
	var out []Layer
	for _, nodes := range s.layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, n := range nodes {
			h := &tar.Header{
				Name: n.name, Typeflag: n.kind, Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: n.mtime, Linkname: n.link, Size: int64(len(n.body)),
				Devmajor: n.major, Devminor: n.minor, PAXRecords: map[string]string{}, Format: tar.FormatPAX,
			}
			for name, value := range n.xattrs {
				h.PAXRecords["SCHILY.xattr."+name] = value
			}
			if err := w.WriteHeader(h); err != nil {
				return nil, fmt.Errorf("%q: %w", n.name, err)
			}
			if _, err := w.Write(n.body); err != nil {
				return nil, fmt.Errorf("%q: %w", n.name, err)
			}
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		out = append(out, Layer{Tar: buf.Bytes()})
	}
	return out, nil
}

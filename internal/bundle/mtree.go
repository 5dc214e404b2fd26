package bundle

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// mtreeName is the manifest's name in a bundle, as umoci looks for it.
func mtreeName(manifest digest.Digest) string {
	return strings.Replace(manifest.String(), ":", "_", 1) + ".mtree"
}

// writeMtree writes the full manifest of a new bundle's tree, with the keywords
// that umoci compares.
func (m *mounting) writeMtree(ctx context.Context) (err error) {
	var opt overlay.Options
	m.state.Options.show(&opt)
	fs, err := overlay.New(m.lower.Image, nil, opt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fs.Close()) }()
	name := mtreeName(m.state.Manifest.Digest)
	m.wrote = append(m.wrote, name)
	t := newMtreeTree(m.lower.Image)
	t.attr = func(ino layer.Ino) (layer.Attr, error) {
		a, err := fs.GetAttr(ino)
		return imageAttr(a), err
	}
	t.xattrs = func(ino layer.Ino) (map[string]string, error) {
		x, err := viewXattrs(fs, ino)
		return walkedXattrs(x), err
	}
	if err := t.hashContent(ctx, allInodes(m.lower.Image)); err != nil {
		return err
	}
	return m.to.top.writeMtree(name, t)
}

// mtreeTree is the tree a manifest is written of.
type mtreeTree struct {
	lower   *layer.Image                               // the image it is of, or lies on
	names   func(layer.Ino) ([]layer.Dirent, error)    // of a directory, sorted
	attr    func(layer.Ino) (layer.Attr, error)        // as the host shows it
	target  func(layer.Ino) (string, error)            // of a symlink
	xattrs  func(layer.Ino) (map[string]string, error) // as a walk finds them, see walkedXattrs
	digests map[layer.Ino]string                       // of regular files; hexadecimal
}

// newMtreeTree is a tree with the names and symlinks of an image.
func newMtreeTree(lower *layer.Image) *mtreeTree {
	return &mtreeTree{lower: lower, digests: map[layer.Ino]string{}, target: lower.Readlink, names: func(dir layer.Ino) ([]layer.Dirent, error) {
		n, err := lower.NumEntries(dir)
		if err != nil {
			return nil, err
		}
		list := make([]layer.Dirent, n)
		for i := range list {
			if list[i], err = lower.Entry(dir, i); err != nil {
				return nil, err
			}
		}
		return list, nil
	}}
}

// writeMtree makes a file in a bundle with the manifest of a tree, which is on the disk
// then: with half a manifest stock umoci would take the rest of the tree for new.
func (f folder) writeMtree(name string, t *mtreeTree) (err error) {
	out, err := f.file(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, "#          tree: %s\n#          date: %s\n#      keywords: %s\n\n",
		f.shown(rootfsName), time.Now().UTC().Format(time.ANSIC), strings.Join(mtreeKeywordNames, ","))
	fmt.Fprint(w, "# .\n/set type=file nlink=1 mode=0664 uid=0 gid=0\n")
	if err := t.writeDir(w, layer.RootIno, ".", "."); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return out.Sync()
}

// mtreeKeywordNames are the ten that umoci compares.
var mtreeKeywordNames = []string{
	"size", "type", "uid", "gid", "mode", "link", "nlink", "tar_time", "sha256digest", "xattr",
}

// allInodes are those of an image.
func allInodes(im *layer.Image) iter.Seq[layer.Ino] {
	return func(yield func(layer.Ino) bool) {
		for ino := layer.RootIno; int(ino) <= im.Len(); ino++ {
			if !yield(ino) {
				return
			}
		}
	}
}

// hashContent computes the digests of those of some inodes of the image that are
// files, in the order in which the content lies in the layers: each span is decoded
// once.
func (t *mtreeTree) hashContent(ctx context.Context, inos iter.Seq[layer.Ino]) error {
	type item struct {
		ino   layer.Ino
		layer int
		pos   int64
	}
	var files []item
	for ino := range inos {
		a, err := t.lower.Attr(ino)
		if err != nil {
			return err
		}
		if a.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		ext, err := t.lower.Extents(ino)
		if err != nil {
			return err
		}
		it := item{ino: ino}
		if len(ext) > 0 {
			it.layer, it.pos = int(ext[0].Layer), ext[0].Pos
		}
		files = append(files, it)
	}
	slices.SortFunc(files, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.pos, b.pos))
	})
	buf := make([]byte, 1<<20)
	for _, it := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := t.lower.Open(it.ino)
		if err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.CopyBuffer(h, io.NewSectionReader(f, 0, f.Size()), buf); err != nil {
			return fmt.Errorf("hash content: %w", err)
		}
		t.digests[it.ino] = hex.EncodeToString(h.Sum(nil))
	}
	return nil
}

// writeDir writes a directory, its files sorted, then its directories, as go-mtree
// orders them.
func (t *mtreeTree) writeDir(w *bufio.Writer, ino layer.Ino, path, name string) error {
	if path != "." {
		fmt.Fprintf(w, "\n# %s\n", visEncode(path))
	}
	if err := t.writeEntry(w, ino, name, ""); err != nil {
		return err
	}
	names, err := t.names(ino)
	if err != nil {
		return err
	}
	var dirs []layer.Dirent
	for _, e := range names {
		if e.Mode == unix.S_IFDIR {
			dirs = append(dirs, e)
			continue
		}
		if err := t.writeEntry(w, e.Ino, e.Name, "    "); err != nil {
			return err
		}
	}
	for _, e := range dirs {
		if err := t.writeDir(w, e.Ino, filepath.Join(path, e.Name), e.Name); err != nil {
			return err
		}
	}
	fmt.Fprint(w, "..\n")
	return nil
}

var mtreeTypes = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "link", unix.S_IFCHR: "char",
	unix.S_IFBLK: "block", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
}

func (t *mtreeTree) writeEntry(w *bufio.Writer, ino layer.Ino, name, indent string) error {
	a, err := t.attr(ino)
	if err != nil {
		return err
	}
	typ := a.Mode & unix.S_IFMT
	fmt.Fprintf(w, "%s%s size=%d", indent, visEncode(name), a.Size)
	if typ != unix.S_IFREG {
		fmt.Fprintf(w, " type=%s", mtreeTypes[typ])
	}
	if a.UID != 0 {
		fmt.Fprintf(w, " uid=%d", a.UID)
	}
	if a.GID != 0 {
		fmt.Fprintf(w, " gid=%d", a.GID)
	}
	fmt.Fprintf(w, " mode=%#o", a.Mode&0o7777)
	if typ == unix.S_IFLNK {
		target, err := t.target(ino)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, " link=%s", visEncode(target))
	}
	if a.Nlink != 1 {
		fmt.Fprintf(w, " nlink=%d", a.Nlink)
	}
	fmt.Fprintf(w, " tar_time=%d.000000000", a.Mtime.Sec)
	if typ == unix.S_IFREG {
		fmt.Fprintf(w, " sha256digest=%s", t.digests[ino])
	}
	if typ == unix.S_IFREG || typ == unix.S_IFDIR {
		xattrs, err := t.xattrs(ino)
		if err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(xattrs)) {
			fmt.Fprintf(w, " xattr.%s=%s", visEncode(key), base64.StdEncoding.EncodeToString([]byte(xattrs[key])))
		}
	}
	fmt.Fprint(w, "\n")
	return nil
}

// visEncode is vis(3) with VIS_OCTAL, VIS_WHITE and VIS_GLOB: what a manifest's
// names are written in.
func visEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c == '\\' {
			b.WriteString(`\\`)
			continue
		}
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`*?[#`, c) >= 0 {
			fmt.Fprintf(&b, `\%03o`, c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

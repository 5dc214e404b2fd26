package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// Archive is a tar whose files become a layer.
type Archive struct {
	Name string // for messages
	Open func() (io.ReadCloser, error)
}

// ErrArchive: an archive with an entry that no layer may hold.
var ErrArchive = errors.New("cannot be expanded")

// Expand makes an image of opt.From and one layer of what is in some archives, each
// over the one before. Nothing is extracted: an entry of the archive becomes one of the
// layer, so no name and no link can lead out of the image, whoever mounts or unpacks it
// (see package layer). Owners are the archive's numbers; names of owners, access times
// and SELinux' labels are left out. Refused are names with "..", names that a layer
// has another meaning for, and types that are none of Linux'. ErrArchive, and what the
// reading gives.
func Expand(ctx context.Context, opt DeriveOptions, archives []Archive) (*cas.Path, error) {
	return derive(ctx, &opt, nil, func(out io.Writer) ([]byte, error) {
		return scanned(out, func(w io.Writer) error {
			x := &expansion{ctx: ctx, out: tar.NewWriter(w), epoch: opt.Epoch}
			for i, a := range archives {
				if err := x.archive(a); err != nil {
					return &InputError{i, a.Name, err}
				}
			}
			return x.out.Close()
		})
	})
}

// scanned gives the table of contents of the tar that write writes to out.
func scanned(out io.Writer, write func(io.Writer) error) ([]byte, error) {
	pr, pw := io.Pipe()
	type result struct {
		toc []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		toc, err := layer.ScanTOC(pr)
		if err == nil {
			_, err = io.Copy(io.Discard, pr) // what follows the end mark
		}
		_ = pr.CloseWithError(err) // never fails
		done <- result{toc, err}
	}()
	err := write(io.MultiWriter(out, pw))
	_ = pw.CloseWithError(err) // never fails; the scanner sees the error or the end
	r := <-done
	if err == nil {
		err = r.err
	}
	return r.toc, err
}

// expansion writes archives as one layer.
type expansion struct {
	ctx   context.Context //nolint:containedctx // of one call
	out   *tar.Writer
	epoch *time.Time
	buf   []byte
}

func (x *expansion) archive(a Archive) (err error) {
	in, err := a.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	r := tar.NewReader(in)
	for n := 0; ; n++ {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return fmt.Errorf("an archive without entries: %w", ErrArchive)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		clean, err := x.header(h)
		if err != nil {
			return fmt.Errorf("%q %w", h.Name, err)
		}
		if clean == nil {
			continue
		}
		if err := x.entry(clean, r); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// entry writes one entry.
func (x *expansion) entry(h *tar.Header, content io.Reader) error {
	if err := x.out.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if x.buf == nil {
		x.buf = make([]byte, 256<<10)
	}
	// The wrappers keep the buffer in use where either side has a copy of its own.
	_, err := io.CopyBuffer(struct{ io.Writer }{x.out}, struct{ io.Reader }{content}, x.buf)
	return err
}

// header is what a layer has for an entry; nil: nothing.
func (x *expansion) header(h *tar.Header) (*tar.Header, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	name, err := memberName(h.Name)
	if err != nil {
		return nil, err
	}
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: layer.ClampTime(h.ModTime.Unix(), x.epoch),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		out.Typeflag, out.Size = tar.TypeReg, h.Size
	case tar.TypeDir:
		if name != "." {
			out.Name += "/"
		}
	case tar.TypeSymlink:
		out.Linkname = h.Linkname
	case tar.TypeLink:
		if out.Linkname, err = memberName(h.Linkname); err != nil {
			return nil, fmt.Errorf("is a link to %q, which %w", h.Linkname, err)
		}
	case tar.TypeChar, tar.TypeBlock:
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
	case tar.TypeFifo:
	default:
		return nil, fmt.Errorf("is of type %q: %w", h.Typeflag, ErrArchive)
	}
	if name == "." && h.Typeflag != tar.TypeDir {
		return nil, fmt.Errorf("would replace the root directory: %w", ErrArchive)
	}
	out.PAXRecords, err = memberXattrs(h.PAXRecords)
	return out, err
}

// memberName is an entry's path below the root. A leading "/" goes, as with tar(1).
func memberName(name string) (string, error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("has \"..\" in its name: %w", ErrArchive)
		}
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		clean = "."
	}
	for part := range strings.SplitSeq(clean, "/") {
		if layer.IsWhiteoutName(part) {
			return "", fmt.Errorf("would remove files: %w: %w", ErrArchive, layer.ErrReservedName)
		}
	}
	return clean, nil
}

// PAX records of an extended attribute, as star, GNU tar and bsdtar write them.
const (
	paxXattr      = "SCHILY.xattr."
	paxACLAccess  = "SCHILY.acl.access"
	paxACLDefault = "SCHILY.acl.default"
)

// memberXattrs are the extended attributes, ACLs among them, as PAX records.
func memberXattrs(records map[string]string) (map[string]string, error) {
	var out map[string]string
	add := func(name, value string) {
		if !keepXattr(name, value) {
			return
		}
		if out == nil {
			out = map[string]string{}
		}
		out[paxXattr+name] = value
	}
	for key, value := range records {
		if name, ok := strings.CutPrefix(key, paxXattr); ok {
			add(name, value)
		}
	}
	for key, name := range map[string]string{paxACLAccess: "system.posix_acl_access", paxACLDefault: "system.posix_acl_default"} {
		text, ok := records[key]
		if !ok || text == "" {
			continue
		}
		value, err := parseACL(text)
		if err != nil {
			return nil, fmt.Errorf("has an ACL that cannot be read: %w: %w", ErrArchive, err)
		}
		add(name, value)
	}
	return out, nil
}

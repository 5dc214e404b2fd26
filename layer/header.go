package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Writing a layer.
var (
	// ErrReservedName: a file's name would be read as a whiteout.
	ErrReservedName = errors.New("a name that begins with \"" + WhiteoutPrefix + "\" cannot be stored in a layer")
	// ErrBodySize: a file's content is shorter or longer than its size says.
	ErrBodySize = errors.New("content is not as long as the size says")
	// ErrRecord: a record that no caller may give.
	ErrRecord = errors.New("invalid record")
)

// newHeader is the tar header of a record, of the format that archive/tar takes
// by itself: ustar where everything fits, else PAX.
func newHeader(r *Record, epoch *time.Time) (*tar.Header, error) {
	switch {
	case r.Whiteout:
		dir, name := path.Split(r.Path)
		return &tar.Header{Typeflag: tar.TypeReg, Name: dir + WhiteoutName(name)}, nil
	case r.Opaque:
		return &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(r.Path, OpaqueName)}, nil
	}
	h := &tar.Header{
		Name:    r.Path,
		Mode:    int64(r.Attr.Mode & 0o7777),
		Uid:     int(r.Attr.UID),
		Gid:     int(r.Attr.GID),
		ModTime: ClampTime(r.Attr.Mtime.Sec, epoch),
	}
	if err := setXattrs(h, r); err != nil {
		return nil, err
	}
	if r.Link != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, r.Link
		return h, nil
	}
	return h, setType(h, r)
}

// setType fills in what an entry's type has.
func setType(h *tar.Header, r *Record) error {
	switch r.Attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, r.Attr.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		if r.Path != "." {
			h.Name += "/"
		}
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, r.Symlink
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return fmt.Errorf("%w: type %#o", ErrRecord, r.Attr.Mode&unix.S_IFMT)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor = int64(unix.Major(r.Attr.Rdev))
		h.Devminor = int64(unix.Minor(r.Attr.Rdev))
	}
	return nil
}

// setXattrs adds the extended attributes. One without a value has no form: an
// empty PAX record takes the name back (pax, "Extended Header Keyword
// Precedence"). Callers leave those out.
func setXattrs(h *tar.Header, r *Record) error {
	if len(r.Xattrs) == 0 {
		return nil
	}
	h.PAXRecords = make(map[string]string, len(r.Xattrs))
	for name, value := range r.Xattrs {
		switch {
		case value == "":
			return fmt.Errorf("%w: extended attribute %q has no value", ErrRecord, name)
		case strings.ContainsAny(name, "=\x00") || name == "":
			return fmt.Errorf("%w: extended attribute %q has a name that a tar cannot hold", ErrRecord, name)
		}
		h.PAXRecords[paxXattr+name] = value
	}
	return nil
}

// ClampTime is the time that an entry modified sec seconds after the Unix epoch
// is written with: no later than epoch, where there is one (SOURCE_DATE_EPOCH,
// reproducible-builds.org).
func ClampTime(sec int64, epoch *time.Time) time.Time {
	if epoch != nil && sec > epoch.Unix() {
		sec = epoch.Unix()
	}
	return time.Unix(sec, 0)
}

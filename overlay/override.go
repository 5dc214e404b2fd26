package overlay

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// overrideStat is what a plain user's upper cannot store in the inode itself:
// owner, the full mode, and, on a regular file that stands in for it, the type
// and device number. The text is that of containers/storage and fuse-overlayfs:
// "uid:gid:mode" with an octal mode, and optionally ":type" where type is dir,
// file, symlink, pipe, socket, block-MAJOR-MINOR or char-MAJOR-MINOR.
type overrideStat struct {
	uid  uint32
	gid  uint32
	mode uint32 // permission bits
	typ  uint32 // S_IFMT bits; 0: the object's own
	rdev uint64
}

// split is how a plain user's upper holds o: with a mode of the inode's that keeps the user
// able to work, and an attribute; nil where the mode says it all. o.typ is the type of the
// view; real files and directories do not repeat it in the attribute.
func (o overrideStat) split(standIn bool) (perm uint32, over *overrideStat) {
	if standIn {
		return 0o600, &o
	}
	typ := o.typ
	perm = o.mode&0o777 | 0o600
	if typ == unix.S_IFDIR {
		perm |= 0o700
	}
	if typ != unix.S_IFREG && typ != unix.S_IFDIR || o.uid == 0 && o.gid == 0 && o.mode == perm {
		return perm, nil
	}
	o.typ = 0
	return perm, &o
}

var overrideTypes = map[string]uint32{
	"dir":     unix.S_IFDIR,
	"file":    unix.S_IFREG,
	"symlink": unix.S_IFLNK,
	"pipe":    unix.S_IFIFO,
	"socket":  unix.S_IFSOCK,
}

func (o overrideStat) String() string {
	s := fmt.Sprintf("%d:%d:%o", o.uid, o.gid, o.mode)
	switch o.typ {
	case unix.S_IFBLK:
		return fmt.Sprintf("%s:block-%d-%d", s, unix.Major(o.rdev), unix.Minor(o.rdev))
	case unix.S_IFCHR:
		return fmt.Sprintf("%s:char-%d-%d", s, unix.Major(o.rdev), unix.Minor(o.rdev))
	}
	for name, typ := range overrideTypes {
		if typ == o.typ {
			return s + ":" + name
		}
	}
	return s
}

// parseOverrideStat reads the text of an override_stat attribute.
func parseOverrideStat(s string) (overrideStat, error) {
	var o overrideStat
	parts := strings.Split(s, ":")
	if len(parts) < 3 || len(parts) > 4 {
		return o, fmt.Errorf("override_stat %q: want uid:gid:mode[:type]", s)
	}
	for i, field := range []struct {
		dst  *uint32
		base int
		max  uint64
	}{{&o.uid, 10, 1<<32 - 1}, {&o.gid, 10, 1<<32 - 1}, {&o.mode, 8, 0o177777}} {
		v, err := strconv.ParseUint(parts[i], field.base, 32)
		if err != nil || v > field.max {
			return o, fmt.Errorf("override_stat %q: bad number %q", s, parts[i])
		}
		*field.dst = uint32(v)
	}
	o.mode &= 0o7777
	if len(parts) == 3 {
		return o, nil
	}
	if typ, ok := overrideTypes[parts[3]]; ok {
		o.typ = typ
		return o, nil
	}
	kind, numbers, _ := strings.Cut(parts[3], "-")
	major, minor, ok := strings.Cut(numbers, "-")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return o, fmt.Errorf("override_stat %q: bad type %q", s, parts[3])
	}
	switch kind {
	case "block":
		o.typ = unix.S_IFBLK
	case "char":
		o.typ = unix.S_IFCHR
	default:
		return o, fmt.Errorf("override_stat %q: bad type %q", s, parts[3])
	}
	o.rdev = unix.Mkdev(uint32(ma), uint32(mi))
	return o, nil
}

package layer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

const (
	// maxExtended bounds the body of one extended header (PAX records, GNU long
	// name) in bytes, as archive/tar does: room for sixteen of the largest xattrs.
	maxExtended = 1 << 20
	// maxXattrName, maxXattrValue and maxXattrNames are the kernel's XATTR_NAME_MAX,
	// XATTR_SIZE_MAX and XATTR_LIST_MAX: the last is of all names of a file together,
	// each with a NUL, as listxattr(2) gives them.
	maxXattrName  = 255
	maxXattrValue = 64 << 10
	maxXattrNames = 64 << 10
)

const (
	paxXattr  = "SCHILY.xattr."
	paxSparse = "GNU.sparse."
)

var errPAX = errors.New("malformed PAX record")

// paxRecord is one key and value; an empty value takes an earlier one back.
type paxRecord struct{ key, value []byte }

// appendPAX parses a body of "LEN KEY=VALUE\n" records (pax(1), "pax Extended
// Header"). The records are views into body.
func appendPAX(dst []paxRecord, body []byte) ([]paxRecord, error) {
	for len(body) > 0 {
		sp := bytes.IndexByte(body, ' ')
		if sp <= 0 {
			return dst, errPAX
		}
		n, err := decimal(body[:sp])
		if err != nil || n < int64(sp)+3 || n > int64(len(body)) || body[n-1] != '\n' {
			return dst, errPAX
		}
		key, value, ok := bytes.Cut(body[sp+1:n-1], []byte{'='})
		if !ok || len(key) == 0 || bytes.IndexByte(key, 0) >= 0 {
			return dst, errPAX
		}
		dst = append(dst, paxRecord{key, value})
		body = body[n:]
	}
	return dst, nil
}

// paxValues is what the extended headers say about one entry; nil: nothing.
type paxValues struct {
	path, linkpath, uid, gid, size, mtime []byte

	sparseMajor, sparseMinor     []byte
	sparseName, sparseMap        []byte
	sparseSize, sparseRealSize   []byte
	sparseCount                  []byte
	sparsePairs                  [][]byte // of version 0.0: offset, length, offset, …
	xattrs                       []xattr
	hasSparse, malformedSparse00 bool
}

// reset forgets everything but keeps the memory.
func (v *paxValues) reset() {
	*v = paxValues{sparsePairs: v.sparsePairs[:0], xattrs: v.xattrs[:0]}
}

// set takes one record; a later one of the same key wins.
func (v *paxValues) set(r paxRecord) {
	switch key := string(r.key); {
	case key == "path":
		v.path = r.value
	case key == "linkpath":
		v.linkpath = r.value
	case key == "uid":
		v.uid = r.value
	case key == "gid":
		v.gid = r.value
	case key == "size":
		v.size = r.value
	case key == "mtime":
		v.mtime = r.value
	case bytes.HasPrefix(r.key, []byte(paxXattr)):
		v.addXattr(r.key[len(paxXattr):], r.value)
	case bytes.HasPrefix(r.key, []byte(paxSparse)):
		v.setSparse(key[len(paxSparse):], r.value)
	}
}

// global reports whether a record counts in a global header. What names one entry
// or says where its data lies cannot be meant for all of them, and attributes would
// be as many times what the header has as there are entries; other programs drop
// them too.
func (r paxRecord) global() bool {
	switch string(r.key) {
	case "uid", "gid", "mtime":
		return true
	}
	return false
}

func (v *paxValues) setSparse(key string, value []byte) {
	v.hasSparse = true
	switch key {
	case "major":
		v.sparseMajor = value
	case "minor":
		v.sparseMinor = value
	case "name":
		v.sparseName = value
	case "map":
		v.sparseMap = value
	case "size":
		v.sparseSize = value
	case "realsize":
		v.sparseRealSize = value
	case "numblocks":
		v.sparseCount = value
	case "offset", "numbytes":
		if isLength := key == "numbytes"; isLength != (len(v.sparsePairs)%2 == 1) {
			v.malformedSparse00 = true
		}
		v.sparsePairs = append(v.sparsePairs, value)
	}
}

// addXattr keeps an attribute with its value, which may be empty. Dropped are
// those that umoci never sets, as they belong to the host (security.selinux,
// system.nfs4_acl), and those that no file system could hold: of an unknown
// name space or without a name in it.
func (v *paxValues) addXattr(name, value []byte) {
	if keepXattr(string(name)) {
		v.xattrs = append(v.xattrs, xattr{name, value})
	}
}

// sortXattrs sorts the attributes by name; the last of a name counts.
func (v *paxValues) sortXattrs() {
	if len(v.xattrs) < 2 {
		return
	}
	slices.SortStableFunc(v.xattrs, func(a, b xattr) int { return bytes.Compare(a.name, b.name) })
	kept := v.xattrs[:1]
	for _, x := range v.xattrs[1:] {
		if last := &kept[len(kept)-1]; bytes.Equal(last.name, x.name) {
			last.value = x.value
			continue
		}
		kept = append(kept, x)
	}
	v.xattrs = kept
}

func keepXattr(name string) bool {
	switch name {
	case "security.selinux":
		return false
	case "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	for _, space := range [...]string{"user.", "trusted.", "security."} {
		if len(name) > len(space) && name[:len(space)] == space {
			return true
		}
	}
	return false
}

// checkXattrs refuses what setxattr(2) would, and what listxattr(2) could not
// list.
func checkXattrs(xs []xattr) error {
	names := 0
	for _, x := range xs {
		names += len(x.name) + 1
		if len(x.name) > maxXattrName {
			return fmt.Errorf("extended attribute name of more than %d bytes", maxXattrName)
		}
		if len(x.value) > maxXattrValue {
			return fmt.Errorf("extended attribute %q of more than %d bytes", x.name, maxXattrValue)
		}
	}
	if names > maxXattrNames {
		return fmt.Errorf("names of extended attributes of more than %d bytes", maxXattrNames)
	}
	return nil
}

package bundle

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// aclTag tells the kinds of entries of a POSIX ACL apart; in the order in which the
// kernel wants them (include/uapi/linux/posix_acl.h, fs/posix_acl.c:posix_acl_valid).
type aclTag uint16

const (
	aclUserObj  aclTag = 0x01
	aclUser     aclTag = 0x02
	aclGroupObj aclTag = 0x04
	aclGroup    aclTag = 0x08
	aclMask     aclTag = 0x10
	aclOther    aclTag = 0x20
)

type aclEntry struct {
	tag  aclTag
	perm uint16
	id   uint32 // of aclUser and aclGroup; else math.MaxUint32
}

// parseACL turns an ACL's text, as tar(1) has it, into the value of the extended
// attribute: version 2, then tag, permissions and id of each entry, little endian
// (include/uapi/linux/posix_acl_xattr.h). Entries are "tag:who:perms" with commas or
// newlines between them; what follows the permissions is the id of a name, as star
// writes it. A name without an id cannot be known here.
func parseACL(text string) (string, error) {
	var entries []aclEntry
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		if field, _, _ = strings.Cut(field, "#"); strings.TrimSpace(field) == "" {
			continue
		}
		e, err := parseACLEntry(strings.TrimSpace(field))
		if err != nil {
			return "", err
		}
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, func(a, b aclEntry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id))
	})
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e.tag))
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b), nil
}

func parseACLEntry(s string) (aclEntry, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 3 || len(parts) > 4 {
		return aclEntry{}, fmt.Errorf("entry %q: want TAG:WHO:PERMISSIONS", s)
	}
	e := aclEntry{id: math.MaxUint32}
	who := parts[1]
	if len(parts) == 4 {
		who = parts[3]
	}
	switch parts[0] {
	case "user", "u":
		e.tag = aclUserObj
		if parts[1] != "" {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if parts[1] != "" {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return aclEntry{}, fmt.Errorf("entry %q: unknown tag", s)
	}
	if e.tag == aclUser || e.tag == aclGroup {
		id, err := strconv.ParseUint(who, 10, 32)
		if err != nil {
			return aclEntry{}, fmt.Errorf("entry %q names %q: make the archive with --numeric-owner", s, who)
		}
		e.id = uint32(id)
	}
	for _, c := range parts[2] {
		switch c {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return aclEntry{}, fmt.Errorf("entry %q: want permissions as rwx", s)
		}
	}
	return e, nil
}

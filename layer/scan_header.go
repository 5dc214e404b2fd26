package layer

import (
	"bytes"
	"errors"
	"fmt"
)

// Tar typeflags: POSIX ustar, then PAX, then GNU.
const (
	typeRegular    = '0'
	typeOldRegular = 0
	typeHardlink   = '1'
	typeSymlink    = '2'
	typeChar       = '3'
	typeBlock      = '4'
	typeDir        = '5'
	typeFifo       = '6'
	typeContiguous = '7' // POSIX: where it means nothing, a regular file
	typePAX        = 'x'
	typePAXGlobal  = 'g'
	typeLongName   = 'L'
	typeLongLink   = 'K'
	typeGNUSparse  = 'S'
	typeGNULabel   = 'V' // the archive's own name; no file
)

// tarHeader is one header block, decoded but for what only its type needs.
type tarHeader struct {
	raw      [tarBlock]byte
	typeflag byte
	gnu      bool
	name     []byte // with the ustar prefix
	linkname []byte
	mode     int64
	uid, gid int64
	size     int64
	mtime    int64
}

var errHeader = errors.New("malformed tar header")

// Fields of a header block: offset and length.
type tarField struct{ off, n int }

var (
	fieldName     = tarField{0, 100}
	fieldMode     = tarField{100, 8}
	fieldUID      = tarField{108, 8}
	fieldGID      = tarField{116, 8}
	fieldSize     = tarField{124, 12}
	fieldMtime    = tarField{136, 12}
	fieldChksum   = tarField{148, 8}
	fieldLinkname = tarField{157, 100}
	fieldMagic    = tarField{257, 8}
	fieldMajor    = tarField{329, 8}
	fieldMinor    = tarField{337, 8}
	fieldPrefix   = tarField{345, 155}
	// star keeps two times in the last 24 bytes of the prefix, GNU in the first.
	fieldStarPrefix = tarField{345, 131}
	fieldGNUAtime   = tarField{345, 12}
	fieldGNUCtime   = tarField{357, 12}
	fieldTrailer    = tarField{508, 4}
)

const typeflagOffset = 156

func (f tarField) of(block []byte) []byte { return block[f.off : f.off+f.n] }

// str is the field up to its first NUL.
func (f tarField) str(block []byte) []byte {
	b := f.of(block)
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// parse decodes a header block: V7, ustar, star and GNU.
func (h *tarHeader) parse(block []byte) error {
	copy(h.raw[:], block)
	b := h.raw[:]
	if !checksumHolds(b) {
		return fmt.Errorf("%w: checksum mismatch", errHeader)
	}
	h.typeflag = b[typeflagOffset]
	h.name, h.linkname = fieldName.str(b), fieldLinkname.str(b)
	var errs [5]error
	h.mode, errs[0] = tarNumber(fieldMode.of(b))
	h.uid, errs[1] = tarNumber(fieldUID.of(b))
	h.gid, errs[2] = tarNumber(fieldGID.of(b))
	h.size, errs[3] = tarNumber(fieldSize.of(b))
	h.mtime, errs[4] = tarNumber(fieldMtime.of(b))
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("%w: %w", errHeader, err)
		}
	}
	if h.size < 0 {
		return fmt.Errorf("%w: negative size", errHeader)
	}
	magic := string(fieldMagic.of(b))
	h.gnu = magic == "ustar  \x00"
	if prefix := h.prefix(b, magic); len(prefix) > 0 {
		h.name = append(append(append(make([]byte, 0, len(prefix)+1+len(h.name)), prefix...), '/'), h.name...)
	}
	return nil
}

// prefix is what stands before the name where a header has such a field.
func (h *tarHeader) prefix(b []byte, magic string) []byte {
	switch {
	case magic[:6] == "ustar\x00" && string(fieldTrailer.of(b)) == "tar\x00":
		return fieldStarPrefix.str(b)
	case magic[:6] == "ustar\x00":
		return fieldPrefix.str(b)
	case h.gnu:
		// Go before 1.8 wrote a prefix into headers with the GNU magic, where
		// times belong: layers of that age have them.
		_, err1 := tarNumber(fieldGNUAtime.of(b))
		_, err2 := tarNumber(fieldGNUCtime.of(b))
		if err1 != nil || err2 != nil {
			return fieldPrefix.str(b)
		}
	}
	return nil
}

// device is the device number's parts.
func (h *tarHeader) device() (major, minor uint32, err error) {
	ma, err1 := tarNumber(fieldMajor.of(h.raw[:]))
	mi, err2 := tarNumber(fieldMinor.of(h.raw[:]))
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("device number: %w", err)
	}
	// What the kernel keeps of them (MKDEV, linux/kdev_t.h).
	if ma < 0 || ma >= 1<<12 || mi < 0 || mi >= 1<<20 {
		return 0, 0, fmt.Errorf("device number %d:%d is out of range", ma, mi)
	}
	return uint32(ma), uint32(mi), nil
}

// checksumHolds compares the sum of the block's bytes, its own field taken as
// spaces, with the field: as unsigned bytes by the standard, as signed ones by
// some old writers.
func checksumHolds(b []byte) bool {
	want, err := tarNumber(fieldChksum.of(b))
	if err != nil {
		return false
	}
	var sum, signed int64
	for i, c := range b {
		if i >= fieldChksum.off && i < fieldChksum.off+fieldChksum.n {
			c = ' '
		}
		sum += int64(c)
		signed += int64(int8(c))
	}
	return want == sum || want == signed
}

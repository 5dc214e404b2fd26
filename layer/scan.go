package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// tarScanner turns one tar stream into a toc. archive/tar is not used because it
// says neither where an entry's data lies in the stream nor where a sparse file
// has holes.
type tarScanner struct {
	in  *tarInput
	out tocWriter
	h   tarHeader

	// Extended headers wait for the entry they belong to.
	pending  bool
	local    []paxRecord // views into paxBody
	paxBody  []byte
	longName []byte
	longLink []byte
	hasName  bool
	hasLink  bool

	global      []paxRecord // one a key: three at most
	globalBytes int

	pax  paxValues
	path []byte
	link []byte
}

// scanTar reads one plain tar stream up to its end mark or its end at an entry's
// boundary. A malformed stream is ErrFormat with the entry and the offset in it;
// an error of r is passed on.
func scanTar(r io.Reader) (*toc, error) {
	s := &tarScanner{in: newTarInput(r)}
	for {
		start := s.in.off
		done, err := s.next()
		if err == nil {
			if done {
				return &s.out.toc, nil
			}
			continue
		}
		if s.in.err != nil && !errors.Is(s.in.err, io.EOF) && errors.Is(err, s.in.err) {
			return nil, fmt.Errorf("read tar stream: %w", err)
		}
		if len(s.h.name) > 0 && !errors.Is(err, errHeader) {
			return nil, fmt.Errorf("%w: tar entry %.200q at offset %d: %w", ErrFormat, s.h.name, start, err)
		}
		return nil, fmt.Errorf("%w: at offset %d of the tar stream: %w", ErrFormat, start, err)
	}
}

// next reads one header and what belongs to it. done says that the stream ended.
func (s *tarScanner) next() (done bool, err error) {
	b, err := s.in.block()
	if errors.Is(err, io.EOF) && s.in.end == s.in.pos {
		return true, s.endOfStream()
	}
	if err != nil {
		return false, err
	}
	if isZero(b) {
		return true, s.endMark()
	}
	s.h.name = nil
	if err := s.h.parse(b); err != nil {
		return false, err
	}
	switch s.h.typeflag {
	case typePAX, typePAXGlobal, typeLongName, typeLongLink:
		return false, s.extended()
	case typeGNULabel:
		return false, s.skipBody(s.h.size)
	}
	return false, s.entry()
}

func (s *tarScanner) endOfStream() error {
	if s.pending {
		return fmt.Errorf("%w after an extended header", errShort)
	}
	return nil
}

// endMark reads the second of the two zero blocks, which may be missing.
func (s *tarScanner) endMark() error {
	b, err := s.in.block()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err == nil && !isZero(b) {
		return fmt.Errorf("%w: a lone block of zeros", errHeader)
	}
	return s.endOfStream()
}

var zeroBlock [tarBlock]byte

func isZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b, zeroBlock[:]) }

// skipBody drops the data of an entry.
func (s *tarScanner) skipBody(n int64) error {
	if err := s.in.skip(n); err != nil {
		return err
	}
	return s.in.pad(n)
}

// extended reads a header that describes the next entry, or all that follow.
func (s *tarScanner) extended() error {
	if s.h.size > maxExtended {
		return fmt.Errorf("%w: extended header of %d bytes (at most %d)", errHeader, s.h.size, maxExtended)
	}
	if s.h.typeflag == typePAXGlobal {
		return s.globalHeader()
	}
	s.pending = true
	var err error
	switch s.h.typeflag {
	case typePAX:
		if s.paxBody, err = s.in.body(s.paxBody[:0], s.h.size); err != nil {
			return err
		}
		s.local, err = appendPAX(s.local[:0], s.paxBody)
	case typeLongName:
		s.longName, err = s.in.body(s.longName[:0], s.h.size)
		s.longName, s.hasName = upToNUL(s.longName), true
	case typeLongLink:
		s.longLink, err = s.in.body(s.longLink[:0], s.h.size)
		s.longLink, s.hasLink = upToNUL(s.longLink), true
	}
	return err
}

func upToNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// globalHeader keeps a global header's records as defaults for all later
// entries. git archive writes one with a comment; few others exist.
func (s *tarScanner) globalHeader() error {
	body, err := s.in.body(nil, s.h.size)
	if err != nil {
		return err
	}
	if s.globalBytes += len(body); s.globalBytes > maxExtended {
		return fmt.Errorf("%w: global headers of more than %d bytes", errHeader, maxExtended)
	}
	recs, err := appendPAX(nil, body)
	if err != nil {
		return err
	}
	for _, r := range recs {
		if r.global() {
			s.setGlobal(r)
		}
	}
	return nil
}

func (s *tarScanner) setGlobal(r paxRecord) {
	for i := range s.global {
		if bytes.Equal(s.global[i].key, r.key) {
			s.global[i].value = r.value
			return
		}
	}
	s.global = append(s.global, r)
}

// entry adds the entry of the header just read, with what extended headers said.
func (s *tarScanner) entry() error {
	s.pax.reset()
	for _, r := range s.global {
		s.pax.set(r)
	}
	for _, r := range s.local {
		s.pax.set(r)
	}
	s.pax.sortXattrs()
	name, linkname := s.names()
	s.h.name = name // for messages
	e := tocEntry{xattrs: s.pax.xattrs}
	var err error
	if s.path, err = appendClean(s.path[:0], name); err != nil {
		return err
	}
	e.path = s.path
	stored := s.h.size
	if len(s.pax.size) > 0 {
		if stored, err = decimal(s.pax.size); err != nil {
			return fmt.Errorf("size: %w", err)
		}
	}
	if stored > math.MaxInt64-tarBlock-s.in.off {
		return fmt.Errorf("%w: size %d", errHeader, stored)
	}
	s.pending, s.hasName, s.hasLink, s.local = false, false, false, s.local[:0]
	white, err := s.whiteout(&e)
	if err != nil {
		return err
	}
	if !white {
		if stored, err = s.fill(&e, name, linkname, stored); err != nil {
			return err
		}
	} else if headerOnly(s.h.typeflag) {
		stored = 0
	}
	if err := s.out.add(&e); err != nil {
		return err
	}
	return s.skipBody(stored)
}

// names are the entry's, by archive/tar's precedence: GNU long names over PAX
// over the header. A sparse file's real name stands in a record of its own.
func (s *tarScanner) names() (name, linkname []byte) {
	name, linkname = s.h.name, s.h.linkname
	if len(s.pax.path) > 0 {
		name = s.pax.path
	}
	if len(s.pax.linkpath) > 0 {
		linkname = s.pax.linkpath
	}
	if s.hasName {
		name = s.longName
	}
	if s.hasLink {
		linkname = s.longLink
	}
	if len(s.pax.sparseName) > 0 {
		name = s.pax.sparseName
	}
	return name, linkname
}

var (
	errEmptyWhiteout = errors.New("whiteout with an empty name")
	errDotWhiteout   = errors.New("whiteout of a directory by \".\" or \"..\"")
)

// whiteout recognises an entry that hides what lies below, whatever its type.
func (s *tarScanner) whiteout(e *tocEntry) (bool, error) {
	dir, base := splitLast(e.path)
	if !bytes.HasPrefix(base, []byte(WhiteoutPrefix)) {
		return false, nil
	}
	if string(base) == OpaqueName {
		e.kind, e.path = kindOpaque, dir
		return true, nil
	}
	target := base[len(WhiteoutPrefix):]
	switch string(target) {
	case "":
		return false, errEmptyWhiteout
	case ".", "..":
		return false, errDotWhiteout
	}
	e.kind = kindWhiteout
	e.path = append(e.path[:len(e.path)-len(base)], target...)
	return true, nil
}

// headerOnly are the types that have no data whatever their size field says, as
// archive/tar reads them.
func headerOnly(typeflag byte) bool {
	switch typeflag {
	case typeHardlink, typeSymlink, typeChar, typeBlock, typeDir, typeFifo:
		return true
	}
	return false
}

// fill completes an entry that is no whiteout, and says how many bytes of data
// follow it.
func (s *tarScanner) fill(e *tocEntry, name, linkname []byte, stored int64) (int64, error) {
	if err := s.fillMeta(e); err != nil {
		return 0, err
	}
	var err error
	switch s.h.typeflag {
	case typeRegular, typeOldRegular, typeContiguous, typeGNUSparse:
		if s.h.typeflag == typeOldRegular && bytes.HasSuffix(name, []byte("/")) {
			e.kind, stored = kindDir, 0 // V7 had no type for them
			break
		}
		e.kind = kindRegular
		stored, err = s.fillData(e, stored)
	case typeDir:
		e.kind, stored = kindDir, 0
	case typeSymlink:
		e.kind, e.link, stored = kindSymlink, linkname, 0
		err = checkTarget(linkname)
	case typeHardlink:
		e.kind, stored = kindHardlink, 0
		s.link, err = appendClean(s.link[:0], linkname)
		e.link = s.link
	case typeChar, typeBlock:
		if e.kind = kindChar; s.h.typeflag == typeBlock {
			e.kind = kindBlock
		}
		var major, minor uint32
		major, minor, err = s.h.device()
		e.rdev, stored = unix.Mkdev(major, minor), 0
	case typeFifo:
		e.kind, stored = kindFifo, 0
	default:
		err = fmt.Errorf("unknown type %q", s.h.typeflag)
	}
	if err == nil && len(e.path) == 0 && e.kind != kindDir {
		err = errors.New("the root must be a directory")
	}
	return stored, err
}

func (s *tarScanner) fillMeta(e *tocEntry) error {
	e.mode = uint32(s.h.mode) & 0o7777
	uid, gid := s.h.uid, s.h.gid
	e.mtime = Timespec{Sec: s.h.mtime}
	var err error
	if len(s.pax.uid) > 0 {
		if uid, err = decimal(s.pax.uid); err != nil {
			return fmt.Errorf("uid: %w", err)
		}
	}
	if len(s.pax.gid) > 0 {
		if gid, err = decimal(s.pax.gid); err != nil {
			return fmt.Errorf("gid: %w", err)
		}
	}
	if e.uid, err = userID("uid", uid); err != nil {
		return err
	}
	if e.gid, err = userID("gid", gid); err != nil {
		return err
	}
	if len(s.pax.mtime) > 0 {
		if e.mtime, err = paxTime(s.pax.mtime); err != nil {
			return fmt.Errorf("mtime: %w", err)
		}
	}
	return checkXattrs(e.xattrs)
}

func checkTarget(target []byte) error {
	switch {
	case len(target) == 0:
		return errors.New("symbolic link without a target")
	case len(target) >= maxPath:
		return errPathTooLong
	case bytes.IndexByte(target, 0) >= 0:
		return errNUL
	}
	return nil
}

// fillData says where a regular file's bytes are, and how many stored ones are
// still to be skipped.
func (s *tarScanner) fillData(e *tocEntry, stored int64) (int64, error) {
	var f sparseFile
	var err error
	switch {
	case s.h.typeflag == typeGNUSparse && !s.h.gnu:
		return 0, errSparse
	case s.h.typeflag == typeGNUSparse:
		f, err = s.oldSparse(s.h.raw[:])
	case s.pax.hasSparse:
		f, err = s.paxSparseFile(&stored)
	default:
		e.size, e.pos = stored, s.in.off
		return stored, nil
	}
	if err != nil {
		return 0, err
	}
	if err := f.place(s.in.off, stored); err != nil {
		return 0, err
	}
	e.sparse, e.size, e.pos, e.pieces = true, f.size, s.in.off, f.pieces
	return stored, nil
}

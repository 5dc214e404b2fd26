package layer

import (
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"crypto/sha256"
)

// A file is verified in blocks of 1<<blockLog bytes, each by itself, although its
// only digest is the SHA-256 of the whole: an index keeps SHA-256's chaining value
// behind every block. A block is right if hashing it takes the value before it to
// the value behind it. To find other bytes that do so is to break SHA-256's
// compression function, and the values fall off while the digest is computed.
const (
	blockLog  = 15
	blockSize = 1 << blockLog
	stateSize = sha256.Size
)

// The form in which crypto/sha256 marshals a hash: magic, chaining value, bytes of
// an unfinished chunk, length hashed.
const (
	shaMagic     = "sha\x03"
	shaMarshaled = len(shaMagic) + stateSize + sha256.BlockSize + 8
)

// shaState is a SHA-256 hash whose chaining value can be taken and set between two
// chunks of 64 bytes.
type shaState struct {
	h   hash.Hash
	buf [shaMarshaled]byte
}

func newShaState() *shaState { return &shaState{h: sha256.New()} }

// state gives the chaining value, valid until the next call. What was hashed must
// be whole chunks.
func (s *shaState) state() ([]byte, error) {
	b, err := s.h.(encoding.BinaryAppender).AppendBinary(s.buf[:0])
	if err != nil {
		return nil, fmt.Errorf("take state of SHA-256: %w", err)
	}
	if len(b) != shaMarshaled || string(b[:len(shaMagic)]) != shaMagic {
		return nil, errors.New("take state of SHA-256: unknown form")
	}
	return b[len(shaMagic):][:stateSize], nil
}

// set makes the hash go on from a chaining value after n bytes, whole chunks.
func (s *shaState) set(state []byte, n int64) error {
	if n == 0 {
		s.h.Reset()
		return nil
	}
	clear(s.buf[:])
	copy(s.buf[:], shaMagic)
	copy(s.buf[len(shaMagic):], state[:stateSize])
	binary.BigEndian.PutUint64(s.buf[shaMarshaled-8:], uint64(n))
	if err := s.h.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.buf[:]); err != nil {
		return fmt.Errorf("set state of SHA-256: %w", err)
	}
	return nil
}

// blockSum hashes a file from its beginning and collects the chaining value behind
// every whole block. It is an io.Writer.
type blockSum struct {
	shaState
	n      int64  // bytes hashed
	states []byte // one value a whole block
}

func newBlockSum() *blockSum { return &blockSum{shaState: shaState{h: sha256.New()}} }

// Write hashes p. It fails only where the standard library cannot give its state.
func (s *blockSum) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part := rest[:min(len(rest), blockSize-int(s.n%blockSize))]
		if _, err := s.h.Write(part); err != nil {
			return 0, err
		}
		s.n += int64(len(part))
		rest = rest[len(part):]
		if s.n%blockSize == 0 {
			state, err := s.state()
			if err != nil {
				return 0, err
			}
			s.states = append(s.states, state...)
		}
	}
	return len(p), nil
}

// sum is the digest of all that was written.
func (s *blockSum) sum() (d [sha256.Size]byte) {
	s.h.Sum(d[:0])
	return d
}

// checkedFile is a file that is verified block by block as it is read. It is safe
// for concurrent use.
type checkedFile struct {
	f      *os.File
	size   int64 // bytes
	states []byte
	digest [sha256.Size]byte // of the whole file
}

// errChanged says that a file is not the one that was indexed.
var errChanged = errors.New("stored bytes do not match the digest")

var shaPool = sync.Pool{New: func() any { return newShaState() }}

// blockEnd is where the block that begins at off ends.
func (c *checkedFile) blockEnd(off int64) int64 { return min(off+blockSize, c.size) }

// readBlocks reads len(p) bytes at off and verifies them. off is at a block's
// beginning, off+len(p) at a block's end.
func (c *checkedFile) readBlocks(p []byte, off int64) error {
	if n, err := c.f.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %w", errChanged, io.ErrUnexpectedEOF)
		}
		return fmt.Errorf("read at %d: %w", off+int64(n), err)
	}
	s := shaPool.Get().(*shaState)
	defer shaPool.Put(s)
	for len(p) > 0 {
		block := p[:min(len(p), blockSize)]
		if err := c.verify(s, block, off); err != nil {
			return err
		}
		p = p[len(block):]
		off += int64(len(block))
	}
	return nil
}

// verify checks the block at off.
func (c *checkedFile) verify(s *shaState, block []byte, off int64) error {
	at := off / blockSize * stateSize
	var before []byte
	if at > 0 {
		before = c.states[at-stateSize : at]
	}
	if err := s.set(before, off); err != nil {
		return err
	}
	if _, err := s.h.Write(block); err != nil {
		return err
	}
	var ok bool
	if len(block) == blockSize {
		got, err := s.state()
		if err != nil {
			return err
		}
		ok = string(got) == string(c.states[at:at+stateSize])
	} else {
		ok = string(s.h.Sum(s.buf[:0])) == string(c.digest[:])
	}
	if !ok {
		return fmt.Errorf("%w: %d bytes at %d", errChanged, len(block), off)
	}
	return nil
}

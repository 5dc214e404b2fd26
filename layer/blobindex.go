package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The file form of a blob's index, see docs/blob-index-format.md:
//
//	[ header 192 ][ spans 32 each ][ states 32 each ][ resume data ]
//
// Numbers are little-endian, the CRCs are CRC-32C.
const (
	blobMagic      = "UMBLOB\r\n"
	blobVersion    = 1
	blobHeaderSize = 192
	spanSize       = 32
)

// Offsets in the header.
const (
	bhVersion    = 8
	bhKind       = 12
	bhFileSize   = 16
	bhStoredSize = 24
	bhPlainSize  = 32
	bhDataSize   = 40
	bhBlockLog   = 48
	bhSpans      = 52
	bhResume     = 56
	bhDigest     = 64
	bhDiffID     = 96
	bhDataDigest = 128
	bhBodyCRC    = 160
	bhHeaderCRC  = 188
)

// blobKind is how the plain stream is had from the file that is read.
type blobKind uint32

const (
	blobRaw  blobKind = iota + 1 // the file is the plain stream
	blobGzip                     // gzip members; spans begin anywhere
	blobZstd                     // zstd frames; spans are whole frames
	blobSide                     // as blobZstd, of the side file
)

// maxSpan bounds a span's plain bytes, so that no index makes a reader allocate
// without bounds.
const maxSpan = 16 << 20

// blobIndex is what random access to one layer needs: where decoding can start,
// and the states of the digest in between. It is immutable.
type blobIndex struct {
	kind       blobKind
	storedSize int64 // of the layer's blob
	plainSize  int64
	dataSize   int64 // of the file that is read: the blob or the side file
	digest     [sha256.Size]byte
	diffID     [sha256.Size]byte
	dataDigest [sha256.Size]byte

	spans  []byte // spanSize bytes each
	states []byte // see blockSum
	resume []byte // what resume points refer to
}

// span is one record of the index: a run of the plain stream that can be decoded
// by itself. It ends where the next one begins.
type span struct {
	in  int64 // where its stored form begins, in bits
	out int64 // where it begins in the plain stream, in bytes

	// Gzip: the decoder's state and window lie at data of the resume section, size
	// bytes with CRC crc; size is 0 where the span begins at a member's header.
	// Zstd: data is the length of the frames in bytes, size and crc are 0.
	data int64
	size uint32
	crc  uint32
}

// usesSide reports whether reads go to the side file that buildBlobIndex wrote
// instead of the layer's blob: openBlob must then be given that file.
func (ix *blobIndex) usesSide() bool { return ix.kind == blobSide }

func (ix *blobIndex) numSpans() int { return len(ix.spans) / spanSize }

// addSpan appends a record.
func (ix *blobIndex) addSpan(s span) {
	le := binary.LittleEndian
	b := le.AppendUint64(ix.spans, uint64(s.in))
	b = le.AppendUint64(b, uint64(s.out))
	b = le.AppendUint64(b, uint64(s.data))
	b = le.AppendUint32(b, s.size)
	ix.spans = le.AppendUint32(b, s.crc)
}

// span is record i.
func (ix *blobIndex) span(i int) span {
	le, b := binary.LittleEndian, ix.spans[i*spanSize:][:spanSize]
	return span{
		in: int64(le.Uint64(b)), out: int64(le.Uint64(b[8:])), data: int64(le.Uint64(b[16:])),
		size: le.Uint32(b[24:]), crc: le.Uint32(b[28:]),
	}
}

// spanOut is where span i begins in the plain stream; the stream's end for the one
// after the last.
func (ix *blobIndex) spanOut(i int) int64 {
	if i == ix.numSpans() {
		return ix.plainSize
	}
	return int64(binary.LittleEndian.Uint64(ix.spans[i*spanSize+8:]))
}

// find is the span that holds off, 0 ≤ off < plainSize.
func (ix *blobIndex) find(off int64) int {
	return sort.Search(ix.numSpans(), func(i int) bool { return ix.spanOut(i+1) > off })
}

// check is the file that is read, to be verified by this index.
func (ix *blobIndex) check() checkedFile {
	return checkedFile{size: ix.dataSize, states: ix.states, digest: ix.dataDigest}
}

// describes reports whether the index is of this layer.
func (ix *blobIndex) describes(src Source) bool {
	return src.Digest == sha256Digest(ix.digest) && src.DiffID == sha256Digest(ix.diffID)
}

// sha256Digest is a digest in OCI's form.
func sha256Digest(d [sha256.Size]byte) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, d[:])
}

// parseDigest gives a digest's bytes. Anything but SHA-256 is ErrUnsupported.
func parseDigest(d digest.Digest) (out [sha256.Size]byte, err error) {
	if algo, _, ok := strings.Cut(string(d), ":"); ok && algo != digest.SHA256.String() {
		return out, fmt.Errorf("%w: digest algorithm of %s: only sha256 is known", ErrUnsupported, d)
	}
	if err := d.Validate(); err != nil {
		return out, fmt.Errorf("%w: digest %q: %w", ErrDigest, d, err)
	}
	b, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return out, fmt.Errorf("%w: digest %q: %w", ErrDigest, d, err)
	}
	copy(out[:], b)
	return out, nil
}

// encode writes the index in its file form.
func (ix *blobIndex) encode(w io.Writer) error {
	le := binary.LittleEndian
	h := make([]byte, blobHeaderSize)
	copy(h, blobMagic)
	le.PutUint32(h[bhVersion:], blobVersion)
	le.PutUint32(h[bhKind:], uint32(ix.kind))
	le.PutUint64(h[bhFileSize:], uint64(blobHeaderSize+len(ix.spans)+len(ix.states)+len(ix.resume)))
	le.PutUint64(h[bhStoredSize:], uint64(ix.storedSize))
	le.PutUint64(h[bhPlainSize:], uint64(ix.plainSize))
	le.PutUint64(h[bhDataSize:], uint64(ix.dataSize))
	le.PutUint32(h[bhBlockLog:], blockLog)
	le.PutUint32(h[bhSpans:], uint32(ix.numSpans()))
	le.PutUint64(h[bhResume:], uint64(len(ix.resume)))
	copy(h[bhDigest:], ix.digest[:])
	copy(h[bhDiffID:], ix.diffID[:])
	copy(h[bhDataDigest:], ix.dataDigest[:])
	le.PutUint32(h[bhBodyCRC:], ix.bodyCRC())
	le.PutUint32(h[bhHeaderCRC:], crc32.Checksum(h[:bhHeaderCRC], castagnoli))
	for _, b := range [][]byte{h, ix.spans, ix.states, ix.resume} {
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("write blob index: %w", err)
		}
	}
	return nil
}

// bodyCRC covers what the header's CRC and those of resume points do not.
func (ix *blobIndex) bodyCRC() uint32 {
	return crc32.Update(crc32.Checksum(ix.spans, castagnoli), castagnoli, ix.states)
}

// decodeBlobIndex checks b and gives the index, which keeps b. Resume data is only
// checked when it is used. Errors: ErrMagic, ErrVersion, ErrChecksum, ErrCorrupt.
func decodeBlobIndex(b []byte) (*blobIndex, error) {
	le := binary.LittleEndian
	switch {
	case len(b) < len(blobMagic) || !bytes.Equal(b[:len(blobMagic)], []byte(blobMagic)):
		return nil, fmt.Errorf("blob index: %w", ErrMagic)
	case len(b) < blobHeaderSize:
		return nil, fmt.Errorf("blob index of %d bytes: %w", len(b), ErrChecksum)
	case le.Uint32(b[bhHeaderCRC:]) != crc32.Checksum(b[:bhHeaderCRC], castagnoli):
		return nil, fmt.Errorf("blob index header: %w", ErrChecksum)
	case le.Uint32(b[bhVersion:]) != blobVersion || le.Uint32(b[bhBlockLog:]) != blockLog:
		return nil, fmt.Errorf("blob index version %d: %w", le.Uint32(b[bhVersion:]), ErrVersion)
	case le.Uint64(b[bhFileSize:]) != uint64(len(b)):
		return nil, fmt.Errorf("blob index of %d bytes: %w", len(b), ErrChecksum)
	}
	ix := &blobIndex{
		kind:       blobKind(le.Uint32(b[bhKind:])),
		storedSize: int64(le.Uint64(b[bhStoredSize:])),
		plainSize:  int64(le.Uint64(b[bhPlainSize:])),
		dataSize:   int64(le.Uint64(b[bhDataSize:])),
	}
	copy(ix.digest[:], b[bhDigest:])
	copy(ix.diffID[:], b[bhDiffID:])
	copy(ix.dataDigest[:], b[bhDataDigest:])
	rest := b[blobHeaderSize:]
	spans := uint64(le.Uint32(b[bhSpans:])) * spanSize
	states := uint64(ix.dataSize) / blockSize * stateSize
	if resume := le.Uint64(b[bhResume:]); ix.dataSize < 0 || resume > uint64(len(rest)) ||
		spans+states != uint64(len(rest))-resume {
		return nil, fmt.Errorf("blob index sections: %w", ErrCorrupt)
	}
	ix.spans, ix.states, ix.resume = rest[:spans:spans], rest[spans:][:states:states], rest[spans+states:]
	if ix.bodyCRC() != le.Uint32(b[bhBodyCRC:]) {
		return nil, fmt.Errorf("blob index body: %w", ErrChecksum)
	}
	if err := ix.validate(); err != nil {
		return nil, fmt.Errorf("blob index: %w", err)
	}
	return ix, nil
}

// validate checks that every record lies where it can.
func (ix *blobIndex) validate() error {
	switch ix.kind {
	case blobRaw:
		if ix.numSpans() != 0 || ix.plainSize != ix.dataSize || ix.storedSize != ix.dataSize {
			return ErrCorrupt
		}
		return nil
	case blobGzip, blobZstd:
		if ix.storedSize != ix.dataSize {
			return ErrCorrupt
		}
	case blobSide:
	default:
		return ErrVersion
	}
	if ix.plainSize < 0 || ix.storedSize < 0 || (ix.plainSize > 0) != (ix.numSpans() > 0) {
		return ErrCorrupt
	}
	for i, in := 0, int64(-1); i < ix.numSpans(); i++ {
		s := ix.span(i)
		switch size := ix.spanOut(i+1) - s.out; {
		case i == 0 && s.out != 0, s.out < 0, size <= 0, size > maxSpan, s.in <= in, s.in>>3 >= ix.dataSize:
			return ErrCorrupt
		case s.data < 0:
			return ErrCorrupt
		case ix.kind == blobGzip:
			if s.size > 0 && (s.data > int64(len(ix.resume)) || int64(s.size) > int64(len(ix.resume))-s.data) {
				return ErrCorrupt
			}
		case s.in&7 != 0 || s.data > ix.dataSize-s.in>>3 || s.data > maxSpan:
			return ErrCorrupt
		}
		in = s.in
	}
	return nil
}

package layer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// How many plain bytes a written member or frame holds. Readers decode whole ones,
// smaller ones compress worse: docs/blob-index-format.md has figures.
const (
	gzipMember = 256 << 10
	zstdMember = 2 << 20
	sideMember = 1 << 20 // of a side file; and of what is not compressed
)

// BlobResult describes a blob that a BlobWriter wrote.
type BlobResult struct {
	Digest    digest.Digest // of the stored bytes
	DiffID    digest.Digest // of the plain stream
	Size      int64         // of the stored bytes
	PlainSize int64
	Index     []byte // the blob's index in its file form
}

// BlobWriter compresses a layer's plain stream into independent gzip members or
// zstd frames, on all cores; the output is a function of the input alone. Digest,
// diffID and index are computed on the way. It is not safe for concurrent use.
// Close must be called, also after an error: it ends the goroutines.
//
//	Write ─┬─ work ──▶ workers: compress ─┐
//	       ├─ toHash ▶ hash: diffID ──────┴─ ready, twice ─┐
//	       └─ order ───────────────────────────────────────┴▶ output: digest, w
type BlobWriter struct {
	w    io.Writer
	c    Compression
	size int // plain bytes of a member

	cur       *blobMember // being filled; nil: none
	plainSize int64
	closed    bool
	err       error // of Close

	work   chan *blobMember
	toHash chan *blobMember
	order  chan *blobMember // bounds how many members there are at once
	free   chan *blobMember
	done   sync.WaitGroup
	failed atomic.Pointer[error] // the first error of a goroutine

	diffID hash.Hash // nil: not asked for, or that of the stored bytes; hash's
	sum    *blockSum // output's
	ix     blobIndex // output's; complete after Close
}

// blobMember is one member on its way.
type blobMember struct {
	plain  []byte
	packed []byte        // memory for out
	out    []byte        // what is to be written: packed, or plain
	ready  chan struct{} // one token when it was compressed, one when it was hashed
}

// NewBlobWriter compresses what is written to it into w.
func NewBlobWriter(w io.Writer, c Compression) *BlobWriter {
	size := sideMember
	switch c {
	case CompressGzip:
		size = gzipMember
	case CompressZstd:
		size = zstdMember
	}
	return newBlobWriter(w, c, size, zstd.SpeedBetterCompression, true)
}

// newSideWriter writes a side file: fast, and without a diffID.
func newSideWriter(w io.Writer) *BlobWriter {
	return newBlobWriter(w, CompressZstd, sideMember, zstd.SpeedFastest, false)
}

func newBlobWriter(w io.Writer, c Compression, size int, level zstd.EncoderLevel, diffID bool) *BlobWriter {
	workers := runtime.GOMAXPROCS(0)
	b := &BlobWriter{
		w: w, c: c, size: size, sum: newBlockSum(),
		work:   make(chan *blobMember, workers),
		toHash: make(chan *blobMember, workers+2),
		order:  make(chan *blobMember, workers+2),
		free:   make(chan *blobMember, workers+4),
	}
	if diffID && c != CompressNone {
		b.diffID = sha256.New()
	}
	for range workers {
		b.done.Go(func() { b.compress(level) })
	}
	b.done.Go(b.hash)
	b.done.Go(b.output)
	return b
}

// Write takes the next bytes of the plain stream. An error of the writer below may
// be reported by a later call, or by Close.
func (b *BlobWriter) Write(p []byte) (int, error) {
	if b.closed {
		return 0, errors.New("write to a closed blob writer")
	}
	total := len(p)
	for len(p) > 0 {
		if err := b.failed.Load(); err != nil {
			return total - len(p), *err
		}
		m := b.member()
		n := min(len(p), b.size-len(m.plain))
		m.plain = append(m.plain, p[:n]...)
		p = p[n:]
		b.plainSize += int64(n)
		if len(m.plain) == b.size {
			b.submit()
		}
	}
	return total, nil
}

// member is the one being filled.
func (b *BlobWriter) member() *blobMember {
	if b.cur == nil {
		select {
		case b.cur = <-b.free:
			b.cur.plain = b.cur.plain[:0]
		default:
			b.cur = &blobMember{plain: make([]byte, 0, b.size), ready: make(chan struct{}, 2)}
		}
	}
	return b.cur
}

// submit hands the member on.
func (b *BlobWriter) submit() {
	m := b.cur
	b.cur = nil
	b.order <- m
	b.toHash <- m
	b.work <- m
}

// Close finishes the blob; the writer below stays open. A second call gives the
// same answer.
func (b *BlobWriter) Close() error {
	if b.closed {
		return b.err
	}
	b.closed = true
	if b.cur != nil || b.plainSize == 0 && b.c != CompressNone {
		b.member()
		b.submit()
	}
	close(b.work)
	close(b.toHash)
	close(b.order)
	b.done.Wait()
	if err := b.failed.Load(); err != nil {
		b.err = *err
		return b.err
	}
	ix := &b.ix
	ix.kind = map[Compression]blobKind{CompressNone: blobRaw, CompressGzip: blobGzip, CompressZstd: blobZstd}[b.c]
	ix.plainSize, ix.storedSize, ix.dataSize = b.plainSize, b.sum.n, b.sum.n
	ix.digest, ix.states = b.sum.sum(), b.sum.states
	ix.dataDigest, ix.diffID = ix.digest, ix.digest
	if b.diffID != nil {
		b.diffID.Sum(ix.diffID[:0])
	}
	return nil
}

// Result describes the blob. It is an error before Close, or if Close failed.
func (b *BlobWriter) Result() (BlobResult, error) {
	if !b.closed || b.err != nil {
		return BlobResult{}, errors.Join(errors.New("the blob is not complete"), b.err)
	}
	var index bytes.Buffer
	if err := b.ix.encode(&index); err != nil {
		return BlobResult{}, err
	}
	return BlobResult{
		Digest: sha256Digest(b.ix.digest), DiffID: sha256Digest(b.ix.diffID),
		Size: b.ix.storedSize, PlainSize: b.ix.plainSize, Index: index.Bytes(),
	}, nil
}

// fail keeps the first error.
func (b *BlobWriter) fail(err error) {
	err = fmt.Errorf("write layer: %w", err)
	b.failed.CompareAndSwap(nil, &err)
}

// hash computes the diffID.
func (b *BlobWriter) hash() {
	for m := range b.toHash {
		if b.diffID != nil {
			_, _ = b.diffID.Write(m.plain) // never fails: see hash.Hash
		}
		m.ready <- struct{}{}
	}
}

// output writes members in their order.
func (b *BlobWriter) output() {
	out := int64(0)
	for m := range b.order {
		<-m.ready
		<-m.ready
		if b.failed.Load() == nil {
			if err := b.put(m, out); err != nil {
				b.fail(err)
			}
			out += int64(len(m.plain))
		}
		select {
		case b.free <- m:
		default:
		}
	}
}

// put writes one member, which holds the plain stream from out on.
func (b *BlobWriter) put(m *blobMember, out int64) error {
	if b.c != CompressNone && len(m.plain) > 0 {
		s := span{in: b.sum.n * 8, out: out}
		if b.c == CompressZstd {
			s.data = int64(len(m.out))
		}
		b.ix.addSpan(s)
	}
	if _, err := b.sum.Write(m.out); err != nil {
		return err
	}
	_, err := b.w.Write(m.out)
	return err
}

package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// passOptions of buildBlobIndex; most may be nil.
type passOptions struct {
	// side gives the file for a transcoded copy; it is called at most once, for a layer
	// with zstd frames too long to be read at random. The caller keeps the file and
	// publishes it beside the index where usesSide says so. Without it such a layer is
	// ErrUnsupported.
	side func() (*os.File, error)
	// scan reads the plain stream.
	scan func(io.Reader) error
	// progress is called from one goroutine, with stored bytes.
	progress func(bytes int64)
	// shared is what passes at the same time share. It is always given.
	shared *sharedWork
}

// sharedWork is what several passes at a time have in common.
type sharedWork struct {
	// hashes has the streams of all of them hashed.
	hashes *hashQueue
	// cpus are the processors they run on, one each. What is idle of them decodes parts
	// of a long DEFLATE stream ahead.
	cpus *semaphore.Weighted

	mu    sync.Mutex
	parts []*aheadPart // protected by mu; not in use, for their memory
}

// newSharedWork serves that many passes at a time, on that many processors. The caller
// closes it when they have ended.
func newSharedWork(passes, cpus int) *sharedWork {
	return &sharedWork{hashes: newHashQueue(passes), cpus: semaphore.NewWeighted(int64(max(passes, cpus)))}
}

func (s *sharedWork) close() { s.hashes.close() }

// buildBlobIndex makes one pass over f. It verifies src.Digest, src.Size and
// src.DiffID, hands the plain stream to scan, and records where reading can
// resume. The stored stream is read to its end even where scan stops early.
// Several goroutines work at it: one reads what is stored, one decodes and one scans the
// plain stream, while opt.shared has both hashed; they hold a few MiB, and as many for each
// part that is decoded ahead.
//
// Errors, where several apply the first: the context's; a failure to read;
// ErrDigest; ErrUnsupported; ErrFormat; ErrDiffID; scan's.
func buildBlobIndex(ctx context.Context, f *os.File, src Source, opt passOptions) (*blobIndex, error) {
	ix, err := indexBlob(ctx, f, src, opt)
	if err != nil {
		return nil, fmt.Errorf("index layer %s: %w", src.Digest, err)
	}
	return ix, nil
}

func indexBlob(ctx context.Context, f *os.File, src Source, opt passOptions) (*blobIndex, error) {
	c, err := ParseMediaType(src.MediaType)
	if err != nil {
		return nil, err
	}
	ix := &blobIndex{storedSize: src.Size}
	if ix.digest, err = parseDigest(src.Digest); err != nil {
		return nil, err
	}
	if ix.diffID, err = parseDigest(src.DiffID); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != src.Size {
		return nil, fmt.Errorf("%w: %d bytes, the descriptor says %d", ErrDigest, st.Size(), src.Size)
	}
	// Advice: more read-ahead. Where it is not taken nothing is lost.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	if err := opt.shared.cpus.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer opt.shared.cpus.Release(1)
	p := newIndexPass(f, ix, opt)
	switch c {
	case CompressNone:
		ix.kind, p.raw = blobRaw, true
		err = p.run(ctx, p.decodeRaw, opt.scan)
	case CompressGzip:
		g := newGzipIndexer(p)
		err = p.run(ctx, g.decode, opt.scan)
	case CompressZstd:
		z := &zstdIndexer{p: p, file: f, side: opt.side}
		err = p.run(ctx, z.decode, opt.scan)
	}
	if err != nil {
		return nil, err
	}
	return ix, nil
}

// run makes the pass; decode turns stored into plain.
func (p *indexPass) run(ctx context.Context, decode func() error, scan func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.stop = ctx.Done()
	go p.readStored()
	scanned := make(chan error, 1)
	go func() { scanned <- p.scanPlain(scan) }()

	decodeErr := decode()
	if decodeErr == nil {
		p.flush()
	}
	p.endPlain(decodeErr)
	p.drainStored()
	scanErr := <-scanned
	sums, err := p.endHashes()
	if err != nil {
		return err
	}
	return p.verdict(ctx, decodeErr, sums, scanErr)
}

// passSums are the digests of what a pass has read, and the stored blocks' chaining
// values.
type passSums struct {
	digest, diffID [sha256.Size]byte
	states         []byte
}

func (p *indexPass) endHashes() (sums passSums, err error) {
	var plainErr error
	sums.digest, sums.states, err = p.storedHash.end()
	sums.diffID, _, plainErr = p.plainHash.end()
	return sums, errors.Join(err, plainErr)
}

// verdict is the error that counts, and fills the index in where there is none.
func (p *indexPass) verdict(ctx context.Context, decodeErr error, sums passSums, scanErr error) error {
	ix := p.ix
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if p.readErr != nil {
		return p.readErr
	}
	if sums.digest != ix.digest {
		return fmt.Errorf("%w: the stored bytes have %s", ErrDigest, sha256Digest(sums.digest))
	}
	if decodeErr != nil {
		if errors.Is(decodeErr, ErrUnsupported) || errors.Is(decodeErr, errSide) {
			return decodeErr
		}
		return fmt.Errorf("%w: near stored offset %d, uncompressed offset %d: %w", ErrFormat, p.storedAt, p.plainAt, decodeErr)
	}
	if p.raw {
		sums.diffID = ix.digest
	}
	if sums.diffID != ix.diffID {
		return diffIDError(sha256Digest(sums.diffID), sha256Digest(ix.diffID))
	}
	if scanErr != nil {
		return scanErr
	}
	ix.plainSize = p.plainAt
	if !ix.usesSide() {
		ix.dataSize, ix.dataDigest, ix.states = ix.storedSize, ix.digest, sums.states
	}
	return nil
}

// decodeRaw passes the stored stream on.
func (p *indexPass) decodeRaw() error {
	for {
		b, err := p.nextStored()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		out, err := p.nextPlain(storedChunk)
		if err != nil {
			return err
		}
		out.to = copy(out.data, b.data[storedHead:b.end])
		p.recycle(b)
		p.flush()
	}
}

// diffIDError is ErrDiffID of a stream that is not what the config claims.
func diffIDError(have, claimed digest.Digest) error {
	return fmt.Errorf("%w: the uncompressed stream has %s, the config says %s", ErrDiffID, have, claimed)
}

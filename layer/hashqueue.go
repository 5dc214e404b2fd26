package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/umoci-mount/umoci-mount/layer/sha256x2"
)

// Of a first mount's work, more than a quarter is SHA-256: of every stored byte, and of
// every byte of the streams in them. A processor with the SHA extensions hashes two
// streams in the time of one (sha256x2). So what the passes over an image's layers have
// to hash goes through one queue, and a piece of one stream waits for a piece of
// another, but not for long: its buffer is wanted again.

// hashUrgent is how many pieces of a stream wait before the first is hashed by itself. A
// pass has more buffers of each kind than that, so that it never waits for a piece that
// waits in turn.
const hashUrgent = 2

// hashQueue hashes streams, pieces of two at a time where the processor gains by that.
type hashQueue struct {
	pairing bool // immutable

	mu      sync.Mutex
	changed sync.Cond     // there is more to hash, or less
	streams []*hashStream // protected by mu; the one that waits longest first
	ended   bool          // protected by mu
	workers sync.WaitGroup
}

// newHashQueue serves that many passes at a time, of two streams each. The caller
// closes it when they have ended.
func newHashQueue(passes int) *hashQueue {
	q := &hashQueue{pairing: sha256x2.Available()}
	q.changed.L = &q.mu
	workers := 2 * passes
	if q.pairing {
		workers = (passes + 1) / 2 // as much as that many streams at once, and seldom one alone
	}
	for range workers {
		q.workers.Go(q.work)
	}
	return q
}

func (q *hashQueue) close() {
	q.mu.Lock()
	q.ended = true
	q.changed.Broadcast()
	q.mu.Unlock()
	q.workers.Wait()
}

// work hashes until the queue is closed.
func (q *hashQueue) work() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		a, b := q.takeLocked()
		switch {
		case a != nil:
			q.mu.Unlock()
			hashTogether(a, b)
			q.mu.Lock()
			q.putLocked(a)
			q.putLocked(b)
			q.changed.Broadcast()
		case q.ended:
			return
		default:
			q.changed.Wait()
		}
	}
}

// takeLocked takes the streams to be hashed next; b, or both, may be nil.
// Preconditions: mu is held.
func (q *hashQueue) takeLocked() (a, b *hashStream) {
	for _, s := range q.streams {
		switch {
		case s.busy || len(s.pieces) == 0:
		case !q.pairing:
			s.takeLocked()
			return s, nil
		case a == nil:
			a = s
		default:
			a.takeLocked()
			s.takeLocked()
			return a, s
		}
	}
	if a == nil || len(a.pieces) < hashUrgent && !a.ending {
		return nil, nil
	}
	a.takeLocked()
	return a, nil
}

// putLocked gives back what takeLocked took. Preconditions: mu is held.
func (q *hashQueue) putLocked(s *hashStream) {
	if s == nil {
		return
	}
	s.busy = false
	if s.done {
		s.done = false
		s.pieces = slices.Delete(s.pieces, 0, 1)
		i := slices.Index(q.streams, s)
		q.streams = append(slices.Delete(q.streams, i, i+1), s)
	}
}

// hashStream is a stream that is hashed as it comes.
type hashStream struct {
	q      *hashQueue
	blocks bool // immutable: the chaining value behind each block is kept

	pieces []hashPiece // protected by q.mu; not hashed yet, but for a part of the first
	busy   bool        // protected by q.mu: a worker has it, and what follows
	ending bool        // protected by q.mu: no piece will follow

	sum    shaState
	n      int64                 // bytes hashed
	piece  hashPiece             // the first of pieces
	begun  bool                  // rest and tail are what is left of it
	value  [stateSize / 4]uint32 // the chaining value before rest
	rest   []byte                // whole chunks
	tail   []byte                // less than a chunk behind them
	whole  int                   // how many bytes rest was
	done   bool                  // the piece is hashed
	states []byte                // where blocks is set: one value a whole block
	err    error
}

// takeLocked makes the stream the caller's. Preconditions: q.mu is held, and there is a
// piece that nobody hashes.
func (s *hashStream) takeLocked() {
	s.busy = true
	s.piece = s.pieces[0]
}

// hashPiece is a piece of a stream, which stays as it is until release is called.
type hashPiece struct {
	data    []byte
	release func()
}

// stream begins a stream. With blocks, every piece but the last is whole blocks, and the
// chaining value behind each is kept.
func (q *hashQueue) stream(blocks bool) *hashStream {
	s := &hashStream{q: q, blocks: blocks, sum: shaState{h: sha256.New()}}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.streams = append(q.streams, s)
	return s
}

// add has a piece hashed behind those before it.
func (s *hashStream) add(data []byte, release func()) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.pieces = append(s.pieces, hashPiece{data, release})
	s.q.changed.Broadcast()
}

// end waits until every piece is hashed and gives the digest, and the chaining values
// where they are kept.
func (s *hashStream) end() (d [sha256.Size]byte, states []byte, err error) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	s.ending = true
	q.changed.Broadcast()
	for len(s.pieces) > 0 {
		q.changed.Wait()
	}
	q.streams = slices.DeleteFunc(q.streams, func(other *hashStream) bool { return other == s })
	s.sum.h.Sum(d[:0])
	return d, s.states, s.err
}

// hashTogether hashes of the first pieces of both as much as both have, or that of a
// where there is no b.
func hashTogether(a, b *hashStream) {
	a.begin()
	if b == nil {
		for len(a.rest) > 0 {
			a.hashAlone(a.part())
		}
		a.finish()
		return
	}
	b.begin()
	for len(a.rest) > 0 && len(b.rest) > 0 {
		n := min(a.part(), b.part())
		sha256x2.Blocks(&a.value, &b.value, a.rest[:n], b.rest[:n])
		a.advance(n)
		b.advance(n)
	}
	a.finish()
	b.finish()
}

// begin readies the piece to be hashed.
func (s *hashStream) begin() {
	if s.begun {
		return
	}
	s.begun = true
	data := s.piece.data
	head := min(len(data), int(-s.n&(sha256.BlockSize-1)))
	s.write(data[:head])
	s.whole = (len(data) - head) &^ (sha256.BlockSize - 1)
	s.rest, s.tail = data[head:head+s.whole], data[head+s.whole:]
	if s.whole > 0 {
		state, err := s.sum.state()
		if err != nil {
			s.fail(err)
			return
		}
		s.setValue(state)
	}
}

// finish ends the piece if all whole chunks are hashed.
func (s *hashStream) finish() {
	if len(s.rest) > 0 {
		return
	}
	if s.whole > 0 {
		if err := s.sum.set(s.appendValue(nil), s.n); err != nil {
			s.fail(err)
		}
	}
	s.write(s.tail)
	s.begun, s.done = false, true
	s.piece.release()
}

// fail gives up the piece: the stream has no digest.
func (s *hashStream) fail(err error) {
	s.err = fmt.Errorf("hash: %w", err)
	s.rest, s.tail, s.whole = nil, nil, 0
}

// write hashes less than a chunk.
func (s *hashStream) write(p []byte) {
	_, _ = s.sum.h.Write(p) // never fails: see hash.Hash
	s.n += int64(len(p))
}

// part is how many bytes of rest to hash before the chaining value may have to be kept.
func (s *hashStream) part() int { return min(len(s.rest), blockSize-int(s.n%blockSize)) }

// hashAlone hashes n bytes of rest with the standard library.
func (s *hashStream) hashAlone(n int) {
	err := s.sum.set(s.appendValue(nil), s.n)
	if err == nil {
		_, _ = s.sum.h.Write(s.rest[:n])
		var state []byte
		if state, err = s.sum.state(); err == nil {
			s.setValue(state)
		}
	}
	if err != nil {
		s.fail(err)
		return
	}
	s.advance(n)
}

// advance goes on by n bytes that were hashed.
func (s *hashStream) advance(n int) {
	s.rest = s.rest[n:]
	s.n += int64(n)
	if s.blocks && s.n%blockSize == 0 {
		s.states = s.appendValue(s.states)
	}
}

func (s *hashStream) setValue(state []byte) {
	for i := range s.value {
		s.value[i] = binary.BigEndian.Uint32(state[4*i:])
	}
}

func (s *hashStream) appendValue(b []byte) []byte {
	for _, word := range s.value {
		b = binary.BigEndian.AppendUint32(b, word)
	}
	return b
}

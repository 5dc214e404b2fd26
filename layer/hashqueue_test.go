package layer

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"sync"
	"testing"
)

func testShared(t *testing.T) *sharedWork {
	t.Helper()
	s := newSharedWork(1, 3)
	t.Cleanup(s.close)
	return s
}

func TestHashedStreamsHaveTheirDigestsAndStates(t *testing.T) {
	for name, pairing := range map[string]bool{"as the processor can": true, "one by one": false} {
		for _, passes := range []int{1, 2, 5} {
			q := newHashQueue(passes)
			q.pairing = q.pairing && pairing // before there is a stream
			var streams sync.WaitGroup
			for i := range 2 * passes {
				streams.Go(func() { hashOne(t, name, q, rand.New(rand.NewPCG(uint64(passes), uint64(i))), i%2 == 0) })
			}
			streams.Wait()
			q.close()
		}
	}
}

// hashOne hashes random data in pieces, as a pass does: with few that are not given back.
func hashOne(t *testing.T, name string, q *hashQueue, r *rand.Rand, blocks bool) {
	t.Helper()
	data := make([]byte, r.IntN(4<<20))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	s := q.stream(blocks)
	free := make(chan struct{}, hashUrgent)
	for range hashUrgent {
		free <- struct{}{}
	}
	for rest := data; len(rest) > 0; {
		n := blockSize * (1 + r.IntN(8))
		if !blocks {
			n = []int{1, 63, 64, 65, 1 + r.IntN(3*blockSize)}[r.IntN(5)]
		}
		n = min(n, len(rest))
		<-free
		s.add(rest[:n], func() { free <- struct{}{} })
		rest = rest[n:]
	}
	digest, states, err := s.end()
	if err != nil {
		t.Error(err)
	}
	if digest != sha256.Sum256(data) {
		t.Errorf("%s: another digest of %d bytes", name, len(data))
	}
	want := newBlockSum()
	if _, err := want.Write(data); err != nil {
		t.Error(err)
	}
	if blocks && !bytes.Equal(states, want.states) {
		t.Errorf("%s: other states of %d bytes", name, len(data))
	}
}

package sha256x2

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

func needSHA(t testing.TB) {
	t.Helper()
	if !Available() {
		t.Skip("the processor lacks the SHA extensions, SSSE3 or SSE4.1")
	}
}

// initial is the chaining value before the first block: FIPS 180-4, 5.3.3.
var initial = [8]uint32{
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
}

// The marshaled form of crypto/sha256: the magic, H0 to H7, the part of a block that
// is not hashed yet, the bytes so far.
const (
	magic        = "sha\x03"
	marshaledLen = len(magic) + 8*4 + blockSize + 8
)

// standard is what Blocks does to one stream, done by crypto/sha256.
func standard(t testing.TB, h [8]uint32, p []byte) [8]uint32 {
	t.Helper()
	state := make([]byte, marshaledLen)
	copy(state, magic)
	for i, v := range h {
		binary.BigEndian.PutUint32(state[len(magic)+4*i:], v)
	}
	s := sha256.New()
	if err := s.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		t.Fatal(err)
	}
	s.Write(p)
	state, err := s.(encoding.BinaryAppender).AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range h {
		h[i] = binary.BigEndian.Uint32(state[len(magic)+4*i:])
	}
	return h
}

// check hashes p and q with Blocks, from the chaining values a and b on, as they are
// and with the lanes swapped. It returns the new chaining values.
func check(t testing.TB, a, b [8]uint32, p, q []byte) (newA, newB [8]uint32) {
	t.Helper()
	wantA, wantB := standard(t, a, p), standard(t, b, q)
	p0, q0 := bytes.Clone(p), bytes.Clone(q)
	for _, swapped := range []bool{false, true} {
		newA, newB = a, b
		if swapped {
			Blocks(&newB, &newA, q, p)
		} else {
			Blocks(&newA, &newB, p, q)
		}
		if newA != wantA || newB != wantB {
			t.Fatalf("%d bytes, swapped %v:\n%08x, want %08x\n%08x, want %08x", len(p), swapped, newA, wantA, newB, wantB)
		}
	}
	if !bytes.Equal(p, p0) || !bytes.Equal(q, q0) {
		t.Fatal("the input changed")
	}
	return newA, newB
}

// random is n bytes, the same for the same seed.
func random(seed byte, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// padded is p as FIPS 180-4, 5.1.1, has it hashed.
func padded(p string) []byte {
	n := (len(p)+8)/blockSize*blockSize + blockSize
	out := make([]byte, n)
	out[copy(out, p)] = 0x80
	binary.BigEndian.PutUint64(out[n-8:], uint64(len(p))*8)
	return out
}

func sum(h [8]uint32) (out [sha256.Size]byte) {
	for i, v := range h {
		binary.BigEndian.PutUint32(out[4*i:], v)
	}
	return out
}

// The words are of the standard's examples, so that this test does not lean on
// crypto/sha256.
func TestKnownDigests(t *testing.T) {
	needSHA(t)
	const two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
	for name, tt := range map[string]struct {
		p, q         []byte
		wantP, wantQ [8]uint32
	}{
		"no block": {wantP: initial, wantQ: initial},
		"one block, of abc and of nothing": {
			p: padded("abc"), q: padded(""),
			wantP: [8]uint32{0xba7816bf, 0x8f01cfea, 0x414140de, 0x5dae2223, 0xb00361a3, 0x96177a9c, 0xb410ff61, 0xf20015ad},
			wantQ: [8]uint32{0xe3b0c442, 0x98fc1c14, 0x9afbf4c8, 0x996fb924, 0x27ae41e4, 0x649b934c, 0xa495991b, 0x7852b855},
		},
		"two blocks, the same in both lanes": {
			p: padded(two), q: padded(two),
			wantP: [8]uint32{0x248d6a61, 0xd20638b8, 0xe5c02693, 0x0c3e6039, 0xa33ce459, 0x64ff2167, 0xf6ecedd4, 0x19db06c1},
			wantQ: [8]uint32{0x248d6a61, 0xd20638b8, 0xe5c02693, 0x0c3e6039, 0xa33ce459, 0x64ff2167, 0xf6ecedd4, 0x19db06c1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := initial, initial
			Blocks(&a, &b, tt.p, tt.q)
			if a != tt.wantP || b != tt.wantQ {
				t.Errorf("%08x, want %08x\n%08x, want %08x", a, tt.wantP, b, tt.wantQ)
			}
		})
	}
}

// Many blocks against crypto/sha256's digest, not only its chaining value.
func TestDigestOfManyBlocks(t *testing.T) {
	needSHA(t)
	p, q := random(1, 1<<20), random(2, 1<<20)
	a, b := check(t, initial, initial, p, q)
	end := padded(string(p))[len(p):]
	a, b = check(t, a, b, end, end)
	if sum(a) != sha256.Sum256(p) || sum(b) != sha256.Sum256(q) {
		t.Errorf("%x, want %x\n%x, want %x", sum(a), sha256.Sum256(p), sum(b), sha256.Sum256(q))
	}
}

// Random data of random lengths at random alignments, the chaining values carried
// from call to call, from random ones on.
func TestRandom(t *testing.T) {
	needSHA(t)
	rng := rand.New(rand.NewPCG(1, 2))
	data := random(3, 1<<16)
	var a, b [8]uint32
	for i := range a {
		a[i], b[i] = rng.Uint32(), rng.Uint32()
	}
	for range 2000 {
		n := rng.IntN(20) * blockSize
		p, q := data[rng.IntN(len(data)-n):][:n], data[rng.IntN(len(data)-n):][:n]
		if rng.IntN(8) == 0 {
			q = p
		}
		a, b = check(t, a, b, p, q)
	}
}

func TestSameDataInBothLanes(t *testing.T) {
	needSHA(t)
	p := random(4, 50*blockSize)
	if a, b := check(t, initial, initial, p, p); a != b {
		t.Errorf("%08x and %08x", a, b)
	}
}

// One call over n blocks is n calls over one block.
func TestStatesCarryOver(t *testing.T) {
	needSHA(t)
	const n = 40
	p, q := random(5, n*blockSize), random(6, n*blockSize)
	wantA, wantB := initial, initial
	Blocks(&wantA, &wantB, p, q)
	a, b := initial, initial
	for i := 0; i < n*blockSize; i += blockSize {
		Blocks(&a, &b, p[i:i+blockSize], q[i:i+blockSize])
	}
	if a != wantA || b != wantB {
		t.Errorf("%08x, want %08x\n%08x, want %08x", a, wantA, b, wantB)
	}
}

func TestWrongArgumentsPanic(t *testing.T) {
	needSHA(t)
	var a, b [8]uint32
	for name, call := range map[string]func(){
		"p is longer":        func() { Blocks(&a, &b, make([]byte, 2*blockSize), make([]byte, blockSize)) },
		"q is longer":        func() { Blocks(&a, &b, nil, make([]byte, blockSize)) },
		"part of a block":    func() { Blocks(&a, &b, make([]byte, 100), make([]byte, 100)) },
		"one byte":           func() { Blocks(&a, &b, make([]byte, 1), make([]byte, 1)) },
		"one chaining value": func() { Blocks(&a, &a, make([]byte, blockSize), make([]byte, blockSize)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				if a != [8]uint32{} || b != [8]uint32{} {
					t.Error("a chaining value changed")
				}
			}()
			call()
		})
	}
}

func TestUnavailablePanics(t *testing.T) {
	if Available() {
		t.Skip("the processor has the SHA extensions")
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var a, b [8]uint32
	Blocks(&a, &b, nil, nil)
}

// FuzzBlocks hashes the two halves of data, in two calls cut at a block, from the
// chaining values that the bytes of h give.
func FuzzBlocks(f *testing.F) {
	needSHA(f)
	f.Add([]byte{}, []byte{}, uint8(0))
	f.Add(random(7, 64), random(8, 2*blockSize), uint8(0))
	f.Add(random(9, 64), random(10, 9*blockSize+5), uint8(2))
	f.Fuzz(func(t *testing.T, h, data []byte, cut uint8) {
		var words [64]byte
		copy(words[:], h)
		var a, b [8]uint32
		for i := range a {
			a[i] = binary.BigEndian.Uint32(words[4*i:])
			b[i] = binary.BigEndian.Uint32(words[32+4*i:])
		}
		half := len(data) / 2 / blockSize * blockSize
		p, q := data[:half], data[len(data)-half:]
		c := min(int(cut)*blockSize, half)
		a, b = check(t, a, b, p[:c], q[:c])
		check(t, a, b, p[c:], q[c:])
	})
}

// Both benchmarks hash the same bytes, two streams of benchLen, so their rates
// compare.
const benchLen = 128 << 10

func BenchmarkBlocks(b *testing.B) {
	needSHA(b)
	p, q := random(1, benchLen), random(2, benchLen)
	s, t := initial, initial
	b.SetBytes(2 * benchLen)
	b.ReportAllocs()
	for b.Loop() {
		Blocks(&s, &t, p, q)
	}
}

func BenchmarkStandard(b *testing.B) {
	p, q := random(1, benchLen), random(2, benchLen)
	s, t := sha256.New(), sha256.New()
	b.SetBytes(2 * benchLen)
	b.ReportAllocs()
	for b.Loop() {
		s.Write(p)
		t.Write(q)
	}
}

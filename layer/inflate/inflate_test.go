package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"testing"
)

// plainInputs are what is compressed and decoded again.
func plainInputs() map[string][]byte {
	noise := make([]byte, 200<<10)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	far := append(append(bytes.Clone(noise[:WindowSize]), noise[:1000]...), noise[1000:3000]...)
	var periods []byte
	for p := 1; p < 40; p++ {
		periods = append(periods, bytes.Repeat(noise[p*100:p*100+p], 700/p+1)...)
	}
	skewed := make([]byte, 300<<10) // codes of all lengths
	for i := range skewed {
		for skewed[i] < 200 && r.IntN(2) == 0 {
			skewed[i]++
		}
	}
	return map[string][]byte{
		"nothing":                    nil,
		"one byte":                   {'x'},
		"zeros":                      make([]byte, 1<<20),
		"noise":                      noise,
		"text":                       sampleText(500 << 10),
		"matches of every period":    periods,
		"matches from 32 KiB before": far,
		"codes of all lengths":       skewed,
	}
}

var levels = []int{flate.HuffmanOnly, flate.NoCompression, 1, 2, 4, 6, 9}

func TestStreamsOfEveryKindDecodeAsCompressGzipDoes(t *testing.T) {
	for name, plain := range plainInputs() {
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s at level %d", name, level), func(t *testing.T) {
				b := gzipOf(t, plain, level)
				for _, c := range [][2]int{{1 << 20, 1 << 20}, {1000, 256 << 10}, {256 << 10, 300}, {64 << 10, 33333}} {
					got, err := gunzip(b, c[0], c[1])
					if err != nil || !bytes.Equal(got, plain) {
						t.Fatalf("pieces of %d, chunks of %d: %d bytes of %d, %v", c[0], c[1], len(got), len(plain), err)
					}
				}
			})
		}
	}
}

// fixedBlock is a DEFLATE stream of one block with fixed codes: the literals "ab",
// a match of 258 at distance 2, the end.
var fixedBlock = []byte{0x4b, 0x4c, 0x1a, 0x05, 0xa3, 0x60, 0x14, 0x0c, 0x77, 0x00, 0x00}

func TestFixedBlocksDecode(t *testing.T) {
	var w bytes.Buffer
	z, err := flate.NewWriter(&w, 9)
	if err != nil {
		t.Fatal(err)
	}
	want := []byte("ab" + "ababababab")
	if _, err := z.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if kind := w.Bytes()[0] >> 1 & 3; kind != 1 {
		t.Fatalf("the writer made a block of kind %d", kind)
	}
	got, err := gunzip(wrap(w.Bytes(), want, 0), 100, 100)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

// wrap makes a gzip member of a DEFLATE stream.
func wrap(deflated, plain []byte, flags byte, fields ...byte) []byte {
	b := append([]byte{0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255}, fields...)
	b = append(b, deflated...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}

func TestHeaderFieldsAreSkippedAndTheirCRCIsChecked(t *testing.T) {
	empty := []byte{3, 0}
	head := []byte{0x1f, 0x8b, 8, flagHeadCRC | flagName, 0, 0, 0, 0, 0, 255, 'n', 0}
	sum := uint16(crc32.ChecksumIEEE(head))
	extra := append([]byte{0xff, 0xff}, make([]byte, 65535)...)
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"an extra field", wrap(empty, nil, flagExtra, 2, 0, 'a', 'b'), nil},
		{"a long extra field", wrap(empty, nil, flagExtra, extra...), nil},
		{"a name and a comment", wrap(empty, nil, flagName|flagComment, 'n', 0, 'c', 0), nil},
		{"a name too long for compress/gzip", wrap(empty, nil, flagName, append(bytes.Repeat([]byte{'n'}, 5000), 0)...), nil},
		{"a name without end", wrap(empty, nil, flagName, bytes.Repeat([]byte{'n'}, 70000)...), ErrHeader},
		{"a header CRC", wrap(empty, nil, head[3], 'n', 0, byte(sum), byte(sum>>8)), nil},
		{"a wrong header CRC", wrap(empty, nil, head[3], 'n', 0, byte(sum)+1, byte(sum>>8)), ErrHeader},
		{"another method", append([]byte{0x1f, 0x8b, 7}, wrap(empty, nil, 0)[3:]...), ErrHeader},
		{"no magic", []byte("not a gzip stream"), ErrHeader},
		{"nothing", nil, io.ErrUnexpectedEOF},
		{"zeros alone", make([]byte, 100), ErrHeader},
		{"zeros behind it", append(wrap(empty, nil, 0), make([]byte, 100000)...), nil},
		{"one zero behind it", append(wrap(empty, nil, 0), 0), nil},
		{"garbage behind it", append(wrap(empty, nil, 0), "garbage behind it"...), ErrHeader},
		{"zeros and garbage behind it", append(wrap(empty, nil, 0), 0, 0, 1), ErrHeader},
		{"half a member behind it", append(wrap(empty, nil, 0), wrap(empty, nil, 0)[:5]...), io.ErrUnexpectedEOF},
		{"a wrong CRC", wrap(empty, []byte("x"), 0), ErrChecksum},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, piece := range []int{1, 1 << 20} {
				if _, err := gunzip(c.b, piece, 1000); !errors.Is(err, c.want) {
					t.Errorf("pieces of %d: got %v, want %v", piece, err, c.want)
				}
			}
		})
	}
}

func TestMembersAreJoined(t *testing.T) {
	var b, want []byte
	for i := range 50 {
		plain := sampleText(i * i * 20)
		b = append(b, gzipOf(t, plain, levels[i%len(levels)])...)
		want = append(want, plain...)
	}
	got, err := gunzip(b, 5000, 10000)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestAMatchDoesNotReachIntoTheMemberBefore(t *testing.T) {
	first := gzipOf(t, []byte("0123456789"), 6)
	// A fixed block: match of 3 at distance 1, at the very beginning; then the end.
	second := wrap([]byte{0x03, 0x02, 0x00}, []byte("999"), 0)
	if _, err := gunzip(append(first, second...), 100, 100); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestAStreamCutAnywhereIsAnError(t *testing.T) {
	for _, level := range levels {
		b := gzipOf(t, sampleText(3000), level)
		for n := range b {
			if _, err := gunzip(b[:n], 1<<16, 1<<16); err == nil {
				t.Fatalf("level %d: the first %d bytes of %d decode", level, n, len(b))
			}
		}
	}
}

// stdGunzip is what compress/gzip makes of b.
func stdGunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// agree decodes b with compress/gzip and here and compares. Zeros behind the last
// member, and names longer than compress/gzip's buffer, are taken here alone.
func agree(t *testing.T, b []byte) {
	t.Helper()
	want, wantErr := stdGunzip(b)
	for cut := b; wantErr != nil && len(cut) > 0 && cut[len(cut)-1] == 0; {
		cut = cut[:len(cut)-1]
		if p, err := stdGunzip(cut); err == nil {
			want, wantErr = p, nil
		}
	}
	for _, c := range [][2]int{{1 << 16, 1 << 16}, {50, 300}} {
		got, err := gunzip(b, c[0], c[1])
		switch {
		case wantErr == nil && (err != nil || !bytes.Equal(got, want)):
			t.Fatalf("%x: %d bytes, %v; compress/gzip has %d", b, len(got), err, len(want))
		case wantErr != nil && err == nil && (len(b) < 512 || !errors.Is(wantErr, gzip.ErrHeader)):
			t.Fatalf("%x: decoded; compress/gzip says %v", b, wantErr)
		}
	}
}

func TestAFlippedBitGivesWhatCompressGzipGives(t *testing.T) {
	for _, level := range levels {
		b := gzipOf(t, sampleText(700), level)
		for i := range b {
			for _, bit := range []byte{1, 8, 0x80} {
				b[i] ^= bit
				agree(t, b)
				b[i] ^= bit
			}
		}
	}
}

func FuzzInflate(f *testing.F) {
	for _, plain := range plainInputs() {
		for _, level := range levels {
			f.Add(gzipOf(f, plain[:min(len(plain), 2000)], level))
		}
	}
	f.Add(wrap(fixedBlock, nil, 0))
	f.Add(append(gzipOf(f, []byte("a"), 6), gzipOf(f, []byte("b"), 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		agree(t, b)
		if plain, err := gunzip(b, 1<<16, 1<<16); err == nil && len(plain) < 1<<18 {
			resumeEverywhere(t, b, max(97, len(plain)/16))
		}
		// Most changes break the header or the CRC: the DEFLATE stream alone as well.
		if len(b) > 18 {
			agreeRaw(t, b[10:len(b)-8])
		}
	})
}

// agreeRaw compares a DEFLATE stream's decoding with compress/flate's.
func agreeRaw(t *testing.T, b []byte) {
	t.Helper()
	want, wantErr := io.ReadAll(flate.NewReader(bytes.NewReader(b)))
	var d Decoder
	buf := buffers[byte]{src: append(bytes.Clone(b), make([]byte, InSlack)...), end: len(b), eof: true, pause: math.MaxInt}
	buf.dst = make([]byte, len(want)+1000+OutSlack)
	buf.limit = len(want) + 1000
	why, err := decode(&d, &buf)
	if (err == nil) != (wantErr == nil) || err == nil && (why != ended || !bytes.Equal(buf.dst[:buf.out], want)) {
		t.Fatalf("%x: %d bytes, status %d, %v; compress/flate has %d, %v", b, buf.out, why, err, len(want), wantErr)
	}
}

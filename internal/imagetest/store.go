package imagetest

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
)

// wildly stores a stream in one of the ways in which layers are.
func wildly(r *rand.Rand, plain []byte) (Layer, error) {
	l := Layer{Tar: plain, Compress: pick(r, Gzip, Gzip, Gzip, Zstd, Zstd, Plain)}
	var err error
	switch l.Compress {
	case Gzip:
		l.Stored, err = wildGzip(r, plain)
	case Zstd:
		l.Stored, err = wildZstd(r, plain)
	}
	return l, err
}

// pieces cuts a stream at random places, or nowhere.
func pieces(r *rand.Rand, plain []byte) [][]byte {
	if r.IntN(2) == 0 {
		return [][]byte{plain}
	}
	var out [][]byte
	for len(plain) > 0 {
		n := r.IntN(min(len(plain), pick(r, 700, 10_000, 200_000)) + 1) // some are empty
		out = append(out, plain[:n])
		plain = plain[n:]
	}
	return out
}

func wildGzip(r *rand.Rand, plain []byte) ([]byte, error) {
	var out bytes.Buffer
	for _, p := range pieces(r, plain) {
		if err := gzipMember(r, &out, p); err != nil {
			return nil, err
		}
	}
	switch r.IntN(4) {
	case 0:
		out.Write(make([]byte, 1+r.IntN(3000)))
	case 1: // as eStargz ends: an empty member with a field
		out.WriteString("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x000000000000000000STARGZ\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00")
	}
	return out.Bytes(), nil
}

// gzipMember writes a member with any of the optional fields (RFC 1952), and blocks of
// all kinds.
func gzipMember(r *rand.Rand, out *bytes.Buffer, plain []byte) error {
	head := []byte{0x1f, 0x8b, 8, 0, 1, 2, 3, 4, byte(pick(r, 0, 2, 4)), byte(pick(r, 3, 255))}
	if r.IntN(3) == 0 {
		head[3] |= 4
		extra := make([]byte, r.IntN(300))
		head = append(binary.LittleEndian.AppendUint16(head, uint16(len(extra))), extra...)
	}
	if r.IntN(3) == 0 {
		head[3] |= 8
		head = append(head, "layer.tar\x00"...)
	}
	if r.IntN(3) == 0 {
		head[3] |= 16
		head = append(head, "a comment\x00"...)
	}
	if r.IntN(3) == 0 {
		head[3] |= 1 // it says: text
	}
	if r.IntN(3) == 0 {
		head[3] |= 2
		head = binary.LittleEndian.AppendUint16(head, uint16(crc32.ChecksumIEEE(head)))
	}
	out.Write(head)
	w, err := flate.NewWriter(out, pick(r, flate.HuffmanOnly, 0, 1, 4, 6, 9))
	if err != nil {
		return err
	}
	for rest := plain; len(rest) > 0; {
		n := min(len(rest), pick(r, len(rest), 1000, 100_000))
		_, err := w.Write(rest[:n])
		if err = errors.Join(err, w.Flush()); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		return err
	}
	var end []byte
	end = binary.LittleEndian.AppendUint32(end, crc32.ChecksumIEEE(plain))
	out.Write(binary.LittleEndian.AppendUint32(end, uint32(len(plain))))
	return nil
}

func wildZstd(r *rand.Rand, plain []byte) (_ []byte, err error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(r.IntN(2) == 0), zstd.WithEncoderLevel(pick(r, zstd.SpeedFastest, zstd.SpeedBetterCompression)),
		zstd.WithWindowSize(pick(r, 1<<10, 1<<20, 8<<20)), zstd.WithZeroFrames(r.IntN(2) == 0), zstd.WithSingleSegment(r.IntN(2) == 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	var out bytes.Buffer
	skippable := func() {
		data := make([]byte, r.IntN(100))
		out.Write(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 0x184d2a50+uint32(r.IntN(16))), uint32(len(data))))
		out.Write(data)
	}
	for _, p := range pieces(r, plain) {
		if r.IntN(4) == 0 {
			skippable()
		}
		if r.IntN(2) == 0 {
			out.Write(w.EncodeAll(p, nil))
			continue
		}
		w.Reset(&out) // a stream, whose length is not known at its beginning
		for len(p) > 0 {
			n := min(len(p), pick(r, len(p), 1000, 100_000))
			if _, err := w.Write(p[:n]); err != nil {
				return nil, err
			}
			if err := w.Flush(); err != nil {
				return nil, err
			}
			p = p[n:]
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	if r.IntN(3) == 0 { // as zstd:chunked ends
		skippable()
	}
	return out.Bytes(), nil
}

package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// Fields of a gzip member (RFC 1952, section 2.3).
const (
	gzipMagic    = 0x8b1f
	gzipDeflate  = 8
	flagHeadCRC  = 1 << 1
	flagExtra    = 1 << 2
	flagName     = 1 << 3
	flagComment  = 1 << 4
	gzipFixed    = 10      // bytes before the optional fields
	gzipTrailer  = 8       // CRC32 and ISIZE
	maxGzipField = 1 << 16 // of a name or comment: RFC 1952 has no limit
)

// What is wrong with a gzip stream.
var (
	// ErrHeader: not a gzip member where one must begin.
	ErrHeader = errors.New("invalid gzip header")
	// ErrChecksum: a member's data has not the CRC or the length of its trailer.
	ErrChecksum = errors.New("gzip checksum mismatch")
)

// Input is the part of the stored stream in memory: Buf[Pos:End] is not consumed
// yet, and InSlack bytes of memory lie behind End.
//
// Less than MinInput bytes are unconsumed when a Gzip asks for more.
type Input struct {
	Buf      []byte
	Pos, End int
	EOF      bool  // nothing follows Buf[:End]
	At       int64 // position in the stored stream of Buf[0], for Bit and PauseAt
}

// member is where a Gzip stands in a member.
type member uint8

const (
	atHeader member = iota
	inData
	atTrailer
	atEnd
)

// Gzip decodes a stream of gzip members one after another. Zeros may follow the
// last one, as for gzip(1); anything else is ErrHeader, as for compress/gzip.
type Gzip struct {
	Decoder
	// In is the input. Fill makes it longer: it keeps Buf[Pos:End] and either
	// appends more or sets EOF.
	In   Input
	Fill func(in *Input) error
	// StopAtMember makes Decode return also between two members.
	StopAtMember bool
	// PauseAt makes Decode return before the first block that begins at this bit of the
	// stored stream, or behind it; 0: it does not.
	PauseAt int64

	at    member
	first bool  // the member is the stream's first one
	start int64 // position in the plain stream where the member begins
	crc   uint32
	check bool // the member was decoded from its beginning
}

// Start makes g begin at a member's header. whole says that it is the first
// member of the stream.
func (g *Gzip) Start(whole bool) {
	g.at, g.first = atHeader, whole
}

// Resume makes g go on inside a member, from a state that AppendState gave, at bit
// of the first byte of In. The member's checksum is not verified then. What
// follows the state in p is given back.
func (g *Gzip) Resume(p []byte, bit int) (rest []byte, err error) {
	g.at, g.first, g.check, g.start = inData, false, false, 0
	for g.In.End-g.In.Pos < 1 && !g.In.EOF {
		if err := g.Fill(&g.In); err != nil {
			return nil, err
		}
	}
	var head byte
	if bit > 0 && g.In.Pos < g.In.End {
		head = g.In.Buf[g.In.Pos]
		g.In.Pos++
	}
	return g.SetState(p, bit, head)
}

// InMember reports whether g stands inside a member's data; if not, it stands at
// a member's beginning.
func (g *Gzip) InMember() bool { return g.at == inData }

// Bit is the position in the stored stream of the next bit, in bits.
func (g *Gzip) Bit() int64 { return (g.In.At+int64(g.In.Pos))*8 - int64(g.nbits) }

// Paused reports whether g stands where PauseAt makes it stop.
func (g *Gzip) Paused() bool {
	return g.PauseAt > 0 && g.at == inData && g.phase == phaseHeader && g.Bit() >= g.PauseAt
}

// pause is PauseAt as a bit of the input in memory.
func (g *Gzip) pause() int {
	if g.PauseAt == 0 {
		return math.MaxInt
	}
	return int(g.PauseAt - g.In.At*8)
}

// Output is where Decode puts plain bytes: at Dst[Out:], until Out ≥ Limit. Dst is
// OutSlack bytes longer than Limit and holds the WindowSize bytes before Out, or
// all from the member's beginning on. Origin is the position of Dst[0] in the
// plain stream.
type Output struct {
	Dst    []byte
	Out    int
	Limit  int
	Origin int64
}

// Decode decodes until o.Out ≥ o.Limit; then Out can be up to OutSlack behind it. At
// the end of the stream it is io.EOF; at PauseAt, nil before the limit. It never stands between a member's data and
// its trailer when it returns nil.
func (g *Gzip) Decode(o *Output) error {
	for {
		switch g.at {
		case atHeader:
			if o.Out >= o.Limit {
				return nil
			}
			if err := g.header(); err != nil {
				return err
			}
			if g.at == inData {
				g.start = o.Origin + int64(o.Out)
			}
		case inData:
			done, err := g.data(o)
			if err != nil || done {
				return err
			}
		case atTrailer:
			if err := g.trailer(o); err != nil {
				return err
			}
			if g.StopAtMember {
				return nil
			}
		case atEnd:
			return io.EOF
		}
	}
}

// data decodes from the member's DEFLATE stream.
func (g *Gzip) data(o *Output) (full bool, err error) {
	b := buffers[byte]{
		src: g.In.Buf, in: g.In.Pos, end: g.In.End, eof: g.In.EOF, pause: g.pause(),
		dst: o.Dst, out: o.Out, limit: o.Limit, origin: o.Origin, first: g.start,
	}
	why, err := decode(&g.Decoder, &b)
	if g.check {
		g.crc = crc32.Update(g.crc, crc32.IEEETable, o.Dst[o.Out:b.out])
	}
	g.In.Pos, o.Out = min(b.in, b.end), b.out
	switch {
	case err != nil:
		return false, err
	case why == ended:
		g.at = atTrailer
		return false, nil
	case why == starved:
		return false, g.Fill(&g.In)
	}
	return true, nil
}

// want makes n bytes of input available; fewer at the end of the stream.
func (g *Gzip) want(n int) ([]byte, error) {
	for g.In.End-g.In.Pos < n && !g.In.EOF {
		if err := g.Fill(&g.In); err != nil {
			return nil, err
		}
	}
	return g.In.Buf[g.In.Pos:g.In.End], nil
}

// trailer checks the member's CRC and length.
func (g *Gzip) trailer(o *Output) error {
	g.Decoder.bits, g.Decoder.nbits = 0, 0 // padding of the last byte
	p, err := g.want(gzipTrailer)
	if err != nil {
		return err
	}
	if len(p) < gzipTrailer {
		return fmt.Errorf("gzip trailer: %w", io.ErrUnexpectedEOF)
	}
	size := uint32(o.Origin + int64(o.Out) - g.start)
	if g.check && (binary.LittleEndian.Uint32(p) != g.crc || binary.LittleEndian.Uint32(p[4:]) != size) {
		return ErrChecksum
	}
	g.In.Pos += gzipTrailer
	g.at, g.first = atHeader, false
	return nil
}

// header reads a member's header, or what follows the last member.
func (g *Gzip) header() error {
	p, err := g.want(gzipFixed)
	if err != nil {
		return err
	}
	if !g.first && (len(p) == 0 || p[0] == 0) {
		return g.padding()
	}
	if len(p) < gzipFixed {
		return fmt.Errorf("gzip header: %w", io.ErrUnexpectedEOF)
	}
	if binary.LittleEndian.Uint16(p) != gzipMagic || p[2] != gzipDeflate {
		return ErrHeader
	}
	flags := p[3]
	sum := g.skip(0, gzipFixed)
	if flags&flagExtra != 0 {
		if p, err = g.want(2); err != nil {
			return err
		}
		if len(p) < 2 {
			return fmt.Errorf("gzip header: %w", io.ErrUnexpectedEOF)
		}
		n := int(binary.LittleEndian.Uint16(p))
		sum = g.skip(sum, 2)
		if sum, err = g.skipLong(sum, n); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag != 0 {
			if sum, err = g.text(sum); err != nil {
				return err
			}
		}
	}
	if flags&flagHeadCRC != 0 {
		if p, err = g.want(2); err != nil {
			return err
		}
		if len(p) < 2 {
			return fmt.Errorf("gzip header: %w", io.ErrUnexpectedEOF)
		}
		if binary.LittleEndian.Uint16(p) != uint16(sum) {
			return ErrHeader
		}
		g.In.Pos += 2
	}
	g.Decoder.Reset()
	g.at, g.crc, g.check = inData, 0, true
	return nil
}

// skip consumes n bytes and adds them to a header's CRC.
func (g *Gzip) skip(sum uint32, n int) uint32 {
	sum = crc32.Update(sum, crc32.IEEETable, g.In.Buf[g.In.Pos:g.In.Pos+n])
	g.In.Pos += n
	return sum
}

// skipLong is skip for n bytes that need not be in memory yet.
func (g *Gzip) skipLong(sum uint32, n int) (uint32, error) {
	for n > 0 {
		p, err := g.want(1)
		if err != nil {
			return 0, err
		}
		if len(p) == 0 {
			return 0, fmt.Errorf("gzip header: %w", io.ErrUnexpectedEOF)
		}
		part := min(n, len(p))
		sum = g.skip(sum, part)
		n -= part
	}
	return sum, nil
}

// text consumes a string that ends with a zero byte.
func (g *Gzip) text(sum uint32) (uint32, error) {
	for n := 0; n < maxGzipField; n++ {
		p, err := g.want(1)
		if err != nil {
			return 0, err
		}
		if len(p) == 0 {
			return 0, fmt.Errorf("gzip header: %w", io.ErrUnexpectedEOF)
		}
		end := p[0] == 0
		sum = g.skip(sum, 1)
		if end {
			return sum, nil
		}
	}
	return 0, fmt.Errorf("%w: name or comment is too long", ErrHeader)
}

// padding consumes zeros up to the end of the stream.
func (g *Gzip) padding() error {
	for {
		p, err := g.want(1)
		if err != nil {
			return err
		}
		if len(p) == 0 {
			g.at = atEnd
			return nil
		}
		for _, c := range p {
			if c != 0 {
				return fmt.Errorf("%w: garbage follows the last member", ErrHeader)
			}
		}
		g.In.Pos = g.In.End
	}
}

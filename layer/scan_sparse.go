package layer

import (
	"bytes"
	"errors"
	"fmt"
)

// maxPieces bounds the data runs of one sparse file; each takes 24 bytes of
// memory and of the tree.
const maxPieces = 1 << 20

var errSparse = errors.New("malformed sparse file map")

// sparseFile is what a sparse entry's headers say.
type sparseFile struct {
	size   int64 // with holes
	pieces []piece
}

// add appends a run of n bytes at off. Runs without data mark the file's end and
// are left out.
func (s *sparseFile) add(off, n int64) error {
	var end int64
	if k := len(s.pieces); k > 0 {
		end = s.pieces[k-1].off + s.pieces[k-1].size
	}
	if off < end || n < 0 || off+n < off || off+n > s.size || len(s.pieces) == maxPieces {
		return errSparse
	}
	if n > 0 {
		s.pieces = append(s.pieces, piece{off: off, size: n})
	}
	return nil
}

// place says where the data lies: packed from pos on, stored bytes of it.
func (s *sparseFile) place(pos, stored int64) error {
	for i := range s.pieces {
		p := &s.pieces[i]
		if p.size > stored {
			return errSparse
		}
		p.pos = pos
		pos += p.size
		stored -= p.size
	}
	return nil
}

// The old GNU header: four (offset, length) pairs of 12 bytes each at 386, "more
// blocks follow" at 482, the real size at 483; a following block has 21 pairs
// and its own "more" at 504.
const (
	gnuPairs, gnuPairCount     = 386, 4
	gnuMore, gnuRealSize       = 482, 483
	gnuNextPairs, gnuNextMore  = 21, 504
	gnuNumberSize, gnuPairSize = 12, 24
)

// oldSparse reads the map of a typeflag 'S' entry, header block and followers.
func (s *tarScanner) oldSparse(header []byte) (sparseFile, error) {
	var f sparseFile
	var err error
	if f.size, err = tarNumber(header[gnuRealSize : gnuRealSize+gnuNumberSize]); err != nil || f.size < 0 {
		return f, errSparse
	}
	pairs, more := header[gnuPairs:gnuPairs+gnuPairCount*gnuPairSize], header[gnuMore] != 0
	for {
		for ; len(pairs) >= gnuPairSize && pairs[0] != 0; pairs = pairs[gnuPairSize:] {
			off, err1 := tarNumber(pairs[:gnuNumberSize])
			n, err2 := tarNumber(pairs[gnuNumberSize:gnuPairSize])
			if err := errors.Join(err1, err2, f.add(off, n)); err != nil {
				return f, errSparse
			}
		}
		if !more {
			return f, nil
		}
		b, err := s.in.block()
		if err != nil {
			return f, noEOF(err)
		}
		pairs, more = b[:gnuNextPairs*gnuPairSize], b[gnuNextMore] != 0
	}
}

// paxSparseFile reads the map of a PAX sparse entry: versions 0.0 and 0.1 have
// it in records, 1.0 in front of the data, whose length it takes from *stored.
func (s *tarScanner) paxSparseFile(stored *int64) (f sparseFile, err error) {
	v := &s.pax
	size := v.sparseRealSize
	if len(size) == 0 {
		size = v.sparseSize
	}
	if f.size, err = decimal(size); err != nil {
		return f, errSparse
	}
	switch version := string(v.sparseMajor) + "." + string(v.sparseMinor); version {
	case "1.0":
		err = s.sparseMap10(&f, stored)
	case ".", "0.0", "0.1":
		err = v.sparseRecords(&f)
	default:
		err = fmt.Errorf("sparse file of unknown version %s", version)
	}
	return f, err
}

// sparseRecords takes the map of versions 0.0 and 0.1.
func (v *paxValues) sparseRecords(f *sparseFile) error {
	pairs := v.sparsePairs
	if len(v.sparseMap) > 0 {
		pairs = bytes.Split(v.sparseMap, []byte{','})
	} else if v.malformedSparse00 {
		return errSparse
	}
	count, err := decimal(v.sparseCount)
	if err != nil || len(pairs)%2 != 0 || count != int64(len(pairs)/2) {
		return errSparse
	}
	for i := 0; i < len(pairs); i += 2 {
		off, err1 := decimal(pairs[i])
		n, err2 := decimal(pairs[i+1])
		if err := errors.Join(err1, err2, f.add(off, n)); err != nil {
			return errSparse
		}
	}
	return nil
}

// sparseMap10 reads decimal numbers, each ended by a newline, padded to a block:
// how many pairs, then the pairs.
func (s *tarScanner) sparseMap10(f *sparseFile, stored *int64) error {
	var line, block []byte
	number := func() (int64, error) {
		line = line[:0]
		for {
			if len(block) == 0 {
				if *stored < tarBlock {
					return 0, errSparse
				}
				b, err := s.in.block()
				if err != nil {
					return 0, noEOF(err)
				}
				*stored -= tarBlock
				block = b
			}
			c := block[0]
			block = block[1:]
			if c == '\n' {
				return decimal(line)
			}
			if line = append(line, c); len(line) > 20 {
				return 0, errSparse
			}
		}
	}
	count, err := number()
	if err != nil || count > maxPieces {
		return errors.Join(errSparse, err)
	}
	for range count {
		off, err1 := number()
		n, err2 := number()
		if err := errors.Join(err1, err2); err != nil {
			return errors.Join(errSparse, err)
		}
		if err := f.add(off, n); err != nil {
			return err
		}
	}
	return nil
}

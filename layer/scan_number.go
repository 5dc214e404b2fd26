package layer

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
)

var errNumber = errors.New("malformed number")

// tarNumber parses a numeric header field: octal digits among spaces and NULs,
// or, where the first byte's top bit is set, a big-endian two's complement
// number of the other bits (GNU base-256). An empty field is 0.
func tarNumber(b []byte) (int64, error) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		return base256(b)
	}
	b = bytes.Trim(b, " \x00")
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	var v uint64
	for _, c := range b {
		if c < '0' || c > '7' || v >= 1<<60 {
			return 0, errNumber
		}
		v = v<<3 | uint64(c-'0')
	}
	return int64(v), nil
}

func base256(b []byte) (int64, error) {
	var invert byte
	if b[0]&0x40 != 0 {
		invert = 0xff
	}
	var v uint64
	for i, c := range b {
		c ^= invert
		if i == 0 {
			c &= 0x7f
		}
		if v>>56 != 0 {
			return 0, errNumber
		}
		v = v<<8 | uint64(c)
	}
	if v>>63 != 0 {
		return 0, errNumber
	}
	if invert != 0 {
		return ^int64(v), nil
	}
	return int64(v), nil
}

// decimal parses a PAX number, which must not be negative.
func decimal(b []byte) (int64, error) {
	if len(b) == 0 || len(b) > 19 {
		return 0, errNumber
	}
	var v uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, errNumber
		}
		v = v*10 + uint64(c-'0')
	}
	if v > math.MaxInt64 {
		return 0, errNumber
	}
	return int64(v), nil
}

// maxPAXTime bounds a PAX time in bytes: a global one is parsed for each entry.
const maxPAXTime = 64

// paxTime parses a PAX time: decimal seconds, maybe negative, maybe with a
// fraction, of which nine digits count.
func paxTime(b []byte) (Timespec, error) {
	if len(b) > maxPAXTime {
		return Timespec{}, errNumber
	}
	whole, frac, _ := bytes.Cut(b, []byte{'.'})
	sec, err := strconv.ParseInt(string(whole), 10, 64)
	if err != nil {
		return Timespec{}, errNumber
	}
	var nsec uint32
	for i := range 9 {
		nsec *= 10
		if i < len(frac) {
			nsec += uint32(frac[i] - '0')
		}
	}
	for _, c := range frac {
		if c < '0' || c > '9' {
			return Timespec{}, errNumber
		}
	}
	if len(whole) > 0 && whole[0] == '-' && nsec > 0 {
		if sec == math.MinInt64 {
			return Timespec{}, errNumber
		}
		return Timespec{Sec: sec - 1, Nsec: 1e9 - nsec}, nil
	}
	return Timespec{Sec: sec, Nsec: nsec}, nil
}

// userID checks a uid or gid: 2³²-1 is chown(2)'s "leave as it is" and no id.
func userID(what string, v int64) (uint32, error) {
	if v < 0 || v >= math.MaxUint32 {
		return 0, fmt.Errorf("%s %d is out of range", what, v)
	}
	return uint32(v), nil
}

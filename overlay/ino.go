package overlay

// Numbers of objects that began in the upper are its st_ino with a bit set that no
// lower number reaches (layer.InoLimit). A program with a 32-bit ino_t fails on a
// number that is longer (EOVERFLOW): those of nearly every upper are not. Up to 2^48
// the result stays below 2^53, which programs that keep numbers in a double need.
const (
	upperBit     Ino = 1 << 31
	upperLongBit Ino = 1 << 48
	upperWideBit Ino = 1 << 63
)

// upperIno is the number of an upper object that is no copy of a lower one. It
// is stable over remounts, as st_ino is.
func upperIno(stIno uint64) Ino {
	ino := Ino(stIno)
	switch {
	case ino < upperBit:
		return ino | upperBit
	case ino < upperLongBit:
		return ino | upperLongBit
	}
	return ino | upperWideBit
}

// isLower reports whether ino is a number of the lower tree.
func isLower(ino Ino) bool { return ino < upperBit }

package overlay

// Numbers of objects that began in the upper are its st_ino with a bit set that
// no lower number reaches (a tree has fewer than 2^32 inodes). Up to 2^48 the
// result stays below 2^53, which programs that keep numbers in a double need.
const (
	upperBit     Ino = 1 << 48
	upperWideBit Ino = 1 << 63
)

// upperIno is the number of an upper object that is no copy of a lower one. It
// is stable over remounts, as st_ino is.
func upperIno(stIno uint64) Ino {
	if ino := Ino(stIno); ino < upperBit {
		return ino | upperBit
	}
	return Ino(stIno) | upperWideBit
}

// isLower reports whether ino is a number of the lower tree.
func isLower(ino Ino) bool { return ino < upperBit }

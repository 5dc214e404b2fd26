// Package inflate decodes DEFLATE (RFC 1951) and gzip (RFC 1952), fast, and so
// that decoding can stop after any symbol and go on from there later.
//
//	stored bytes ─▶ Input ─▶ Gzip ── members ──▶ Decoder ── blocks ──▶ Output
//	                                                │ AppendState
//	                                                ▼ SetState
//	                            state ≤ 161 bytes, next bit, 32 KiB of window
//
// Everything goes from memory to memory: callers own the buffers and say how much
// of them is theirs to lose (InSlack, OutSlack), so that the inner loop checks
// bounds once a turn and not at every access. A turn of that loop decodes up to
// six literals, or four and a match, with two loads of input.
//
// Decoding can also begin at a block that BlockFinder finds, before the window there is
// known (Ahead): as units of two bytes, until what is not known is out of reach.
//
// What is accepted is what compress/gzip accepts, and zeros behind the last
// member, which gzip(1) accepts; names and comments may be longer. FuzzInflate
// holds the two together.
//
// The package does not verify the checksum of a member that it resumed in: the
// caller must know its input some other way.
package inflate

package layer

import "fmt"

// What the merged tree takes in memory beside its names and inodes may be
// mergeFree bytes, and mergePerName more for each name that an entry brought. An
// entry can ask for far more than it takes in a layer: a path for a thousand
// directories that no entry describes, a map for a million pieces. A name cannot
// be had for nothing, as each has an entry that no other has.
const (
	mergeFree    = 64 << 20
	mergePerName = 2 << 10

	costPiece    = 24
	costXattr    = 32  // beside the strings
	costImplicit = 256 // a directory that no entry describes
)

// Paths may lead through symlinks whose targets have followFree bytes together,
// and followPerEntry more for each entry.
const (
	followFree     = 16 << 20
	followPerEntry = 256
)

// mergeBudget is what checkBudget looks at.
type mergeBudget struct {
	nodes    int // live, but for the root
	implicit int // inodes that no entry described yet
	named    int // the most names that entries brought and that were there at a time
	entries  int // applied so far, of all layers
	followed int // bytes of the targets of symlinks that paths led through
}

// checkBudget refuses what no honest layers ask for. Each entry of a layer goes
// beyond what is allowed by little.
func (m *merger) checkBudget() error {
	b := &m.budget
	b.entries++
	b.named = max(b.named, b.nodes-b.implicit)
	cost := len(m.names.arena) + costPiece*len(m.pieces) + costXattr*m.xattrs.total + costImplicit*b.implicit
	if cost > mergeFree+mergePerName*b.named {
		return fmt.Errorf("%w: names, extended attributes, pieces of sparse files and directories without entries of more than %d MiB, and of more than %d bytes an entry",
			ErrFormat, mergeFree>>20, mergePerName)
	}
	if b.followed > followFree+followPerEntry*b.entries {
		return fmt.Errorf("%w: paths lead through symbolic links with targets of more than %d MiB, and of more than %d bytes an entry",
			ErrFormat, followFree>>20, followPerEntry)
	}
	return nil
}

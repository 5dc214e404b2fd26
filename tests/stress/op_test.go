package stress

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"golang.org/x/sys/unix"
)

// op is one operation of one process, the same in every world. A script is a list of
// them, one JSON object a line.
type op struct {
	P    int    `json:"p"`              // the process
	Kind string `json:"op"`             // a key of worker.operations
	A    string `json:"a,omitempty"`    // path
	B    string `json:"b,omitempty"`    // second path, symlink target or attribute name
	Slot int    `json:"slot,omitempty"` // of an open file
	N    int64  `json:"n,omitempty"`    // size, mode, owner or flags
	Off  int64  `json:"off,omitempty"`
	Data string `json:"data,omitempty"`
}

func (o op) String() string {
	b, err := json.Marshal(o)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// parties are the processes of a world: root, a user, and a user of another group.
var parties = []struct {
	uid    int
	groups []int
}{{0, []int{0}}, {1000, []int{1000, 7}}, {1001, []int{1001}}}

// slots is how many files a process can have open.
const slots = 3

// worldText is the image that all worlds begin with.
const (
	worldText = `dir . 0755
dir a 0777
dir a/b 0755
dir a/b/c 0777
dir d 02775 gid=7
dir d/s 01777
dir e 0711 uid=1000
dir keep 0755
file keep/x 0644 "x"
file a/f 0666 "content of a file"
file a/g 0644 @70000 uid=1000
file a/b/h 04755 "set-id" uid=1001
file d/f 0664 "of a group" gid=7
file d/s/f 0644 "of a user" uid=1000
file e/f 0600 @9000 uid=1000 xattr:user.note=hello
hardlink e/g e/f
hardlink a/b/f a/f
symlink a/l f
symlink a/b/l ../..
symlink d/l nowhere
fifo d/p 0622
char a/c 0666 1,3
`
	worldUpper = `dir a/b 0757
file a/b/g 0666 "of the second layer"
whiteout keep/x
dir d/s 01777
file d/s/g 0640 @20000 uid=1000 gid=7
`
)

// script makes n operations from a seed. Paths come from few names, so that operations
// meet; most are in the tree from the start.
func script(seed uint64, n int) []op {
	g := &generator{source(seed)}
	ops := make([]op, n)
	for i := range ops {
		ops[i] = g.op()
	}
	return ops
}

type generator struct{ *rand.Rand }

func (g *generator) pick(s ...string) string { return s[g.IntN(len(s))] }

func (g *generator) path() string {
	dirs := []string{"a", "a", "a", "a/b", "a/b", "a/b/c", "d", "d", "d/s", "d/s", "", "e", "keep", "a/b/l", "d/new", "a/f"}
	p := "/" + g.pick(dirs...) + "/" + g.pick("f", "f", "f", "f", "g", "g", "h", "l", "b", "c", "s", "new", "new2", "p")
	if g.IntN(12) == 0 {
		p = "/" + g.pick(dirs...)
	}
	switch g.IntN(60) {
	case 0:
		p += "/"
	case 1:
		p += "/.."
	case 2:
		p = p[1:] // below the working directory
	case 3:
		p = "/" + strings.Repeat("n", 255)
	case 4:
		p += strings.Repeat("n", 256)
	case 5:
		p += "/."
	}
	return p
}

func (g *generator) mode() int64 {
	return []int64{0o644, 0o666, 0o600, 0, 0o777, 0o755, 0o4755, 0o2755, 0o2745, 0o6777, 0o1777, 0o700}[g.IntN(12)]
}

func (g *generator) size() int64 {
	return []int64{0, 1, 100, 4095, 4096, 5000, 20000, 70000, 131072}[g.IntN(9)]
}

func (g *generator) owner() int64 {
	return []int64{0, 1000, 1001, -1, 70000}[g.IntN(5)]
}

// kinds are the operations by how often they are chosen.
var kinds = strings.Fields(`open open open open open open open open open close close read read pread pread write write write pwrite pwrite append
	seek ftruncate fallocate fsync fstat fstat fchmod fchown futimens list mapwrite mapread copy sendfile lock flock dup
	mkdir mkdir mkdir rmdir rmdir unlink unlink unlink rename rename rename rename exchange noreplace link link linkopen symlink readlink
	mkfifo mknod truncate truncate chmod chmod chown chown lchown utimens access access setxattr setxattr getxattr listxattr removexattr
	setacl stat stat lstat readfile readfile writefile writefile readdir readdir chdir umask drop same statfs`)

var openFlags = []int64{
	unix.O_RDONLY, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT,
	unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, unix.O_RDWR | unix.O_TRUNC, unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC, unix.O_WRONLY | unix.O_APPEND,
	unix.O_RDWR | unix.O_APPEND | unix.O_CREAT, unix.O_DIRECTORY, unix.O_RDWR | unix.O_TMPFILE, unix.O_PATH, unix.O_RDWR | unix.O_NOFOLLOW,
	unix.O_RDONLY | unix.O_TRUNC, unix.O_RDWR | unix.O_DIRECT, unix.O_RDONLY | unix.O_NOATIME,
}

var allocateModes = []int64{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}

func (g *generator) op() op {
	o := op{P: g.IntN(len(parties)), Kind: kinds[g.IntN(len(kinds))], Slot: g.IntN(slots)}
	if g.IntN(3) > 0 {
		o.P = 0 // who may do more
	}
	if g.IntN(150) == 0 {
		return op{Kind: "remount"}
	}
	o.A = g.path()
	switch o.Kind {
	case "open":
		o.N, o.Off = openFlags[g.IntN(len(openFlags))], g.mode()
	case "read", "pread", "mapread", "sendfile", "copy":
		o.N, o.Off = g.size(), g.size()
	case "write", "pwrite", "append", "mapwrite", "writefile":
		o.Data, o.N, o.Off = string(rune('A'+g.IntN(26))), 1+g.size()/2, g.size()
	case "seek":
		o.N, o.Off = int64([]int{unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE}[g.IntN(5)]), g.size()
	case "ftruncate", "truncate":
		o.N = g.size()
	case "fallocate":
		o.N, o.Off, o.B = allocateModes[g.IntN(len(allocateModes))], g.size(), fmt.Sprint(1+g.size())
	case "fchmod", "chmod", "mkdir", "mkfifo", "mknod", "umask":
		o.N = g.mode()
	case "fchown", "chown", "lchown":
		if o.N, o.Off = g.owner(), g.owner(); o.N == o.Off { // both -1: no request
			o.Off = 7
		}
	case "futimens", "utimens":
		o.N = int64(g.IntN(1 << 30))
	case "rename", "exchange", "noreplace", "link":
		o.B = g.path()
	case "symlink":
		o.B = g.pick("f", "/a/f", "../d", "nowhere", "l", "/a/b/l")
	case "access":
		o.N = int64(g.IntN(8))
	case "setxattr":
		o.B, o.Data, o.N = g.xattrName(), strings.Repeat("v", g.IntN(300)), int64([]int{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[g.IntN(4)])
	case "getxattr", "removexattr":
		o.B = g.xattrName()
	case "lock", "flock":
		o.N, o.Off = int64(g.IntN(3)), g.size()
	case "setacl":
		o.N, o.B = int64(g.IntN(8)), g.pick("access", "default")
	}
	return o
}

func (g *generator) xattrName() string {
	return g.pick("user.note", "user.a", "user.b", "trusted.t", "security.capability", "user.overlay.x", "bad", "system.none", "user.")
}

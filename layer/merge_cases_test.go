package layer

import (
	"archive/tar"
	"strings"
	"testing"
)

// oddLayers are the traps of tar streams and of laying one over the other. want
// lists the tree without its root where that is untouched; fails is part of the
// error. stock says how umoci 0.4.7 differs; empty: it makes the same tree.
var oddLayers = []struct {
	name         string
	layers       func(t testing.TB) [][]byte
	keepDirlinks bool
	want         string
	fails        string
	stock        string
}{
	{
		name: "duplicate entries: the last wins",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", "1"), tReg("b", "x"), tReg("a", "22").mode(0o600), tDir("d"), tReg("d/x", "x"), tDir("d").mode(0o700).own(3, 4))}
		},
		want: "a f 0600 \"22\"\nb f 0644 \"x\"\nd d 0700 3:4\nd/x f 0644 \"x\"\n",
	},
	{
		name: "entries without parents",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a/b/c", "x"), tDir("p/q"))}
		},
		want: "a d 0755 @0.000000000\na/b d 0755 @0.000000000\na/b/c f 0644 \"x\"\np d 0755 @0.000000000\np/q d 0755\n",
	},
	{
		name: "trailing slashes",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tDir("d/"), tSym("l/", "d/"), tDir("d///e//"), tReg("./d//e/f", "x"))}
		},
		want: "d d 0755\nd/e d 0755\nd/e/f f 0644 \"x\"\nl l 0777 -> d/\n",
	},
	{
		name: "dot-dot and absolute names stay inside",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("../../esc", "1"), tReg("/abs", "2"), tReg("a/../b", "3"), tReg("/../x/../../y", "4"))}
		},
		want: "abs f 0644 \"2\"\nb f 0644 \"3\"\nesc f 0644 \"1\"\ny f 0644 \"4\"\n",
	},
	{
		name: "the root entry sets the root",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tDir("./").mode(0o1711).own(5, 6).at(1500000000, 0)), tarOf(t, tReg("f", ""))}
		},
		want: ". d 1711 5:6 @1500000000.000000000\nf f 0644 \"\"\n",
	},
	{
		name: "the root entry must be a directory",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tSym(".", "/etc"))}
		},
		fails: "the root must be a directory",
	},
	{
		name: "a symlinked parent is followed inside the root",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tDir("real"), tSym("ln", "/real"), tSym("out", "../../../oo"), tSym("deep", "ln/../real/new")),
				tarOf(t, tReg("ln/a", "1"), tReg("out/b", "2"), tReg("deep/c", "3")),
			}
		},
		want: "deep l 0777 -> ln/../real/new\nln l 0777 -> /real\noo d 0755 @0.000000000\noo/b f 0644 \"2\"\nout l 0777 -> ../../../oo\nreal d 0755\nreal/a f 0644 \"1\"\nreal/new d 0755 @0.000000000\nreal/new/c f 0644 \"3\"\n",
	},
	{
		name: "a last component that is a symlink is replaced",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tDir("d"), tReg("d/old", ""), tSym("ln", "d")), tarOf(t, tReg("ln", "now"))}
		},
		want: "d d 0755\nd/old f 0644 \"\"\nln f 0644 \"now\"\n",
	},
	{
		name: "a directory entry replaces a symlink",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tDir("d"), tReg("d/old", ""), tSym("ln", "d")), tarOf(t, tDir("ln"), tReg("ln/x", ""))}
		},
		want: "d d 0755\nd/old f 0644 \"\"\nln d 0755\nln/x f 0644 \"\"\n",
	},
	{
		name:         "keep-dirlinks: a directory entry keeps a symlink to a directory",
		keepDirlinks: true,
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tDir("usr"), tDir("usr/lib"), tReg("usr/lib/old", ""), tSym("lib", "usr/lib"), tSym("broken", "nowhere"), tSym("loop", "loop"), tSym("file", "usr/lib/old")),
				tarOf(t, tDir("lib").mode(0o700).own(7, 8).at(1600000000, 0), tReg("lib/new", ""), tDir("broken"), tDir("loop"), tDir("file")),
			}
		},
		want: "broken d 0755\nfile d 0755\nlib l 0777 7:8 @1600000000.000000000 -> usr/lib\nloop d 0755\nusr d 0755\nusr/lib d 0755\nusr/lib/new f 0644 \"\"\nusr/lib/old f 0644 \"\"\n",
	},
	{
		name: "a file replaced by a directory and back",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tReg("a", "1"), tDir("b"), tReg("b/x", "")),
				tarOf(t, tDir("a"), tReg("a/y", ""), tReg("b", "2")),
				tarOf(t, tReg("a", "3"), tDir("b")),
			}
		},
		want: "a f 0644 \"3\"\nb d 0755\n",
	},
	{
		name: "an ancestor that is no directory becomes one",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("f", "1")), tarOf(t, tReg("f/d/x", "2"))}
		},
		want:  "f d 0755 @0.000000000\nf/d d 0755 @0.000000000\nf/d/x f 0644 \"2\"\n",
		stock: "0.4.7 refuses it, later ones keep the file's mode",
	},
	{
		name: "a hard link whose target sits in a lower layer",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", "1").own(9, 9)), tarOf(t, tLink("b", "a").mode(0)), tarOf(t, tLink("d/c", "/b"))}
		},
		want: "a f 0644 9:9 \"1\" x3=a\nb f 0644 9:9 \"1\" x3=a\nd d 0755 @0.000000000\nd/c f 0644 9:9 \"1\" x3=a\n",
	},
	{
		name: "hard links to symlinks, devices and fifos",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tSym("s", "x"), tLink("s2", "s"), tChar("c", 1, 3), tLink("c2", "c"), tFifo("p"), tLink("p2", "p"))}
		},
		want: "c c 0660 1,3 x2=c\nc2 c 0660 1,3 x2=c\np p 0600 x2=p\np2 p 0600 x2=p\ns l 0777 -> x x2=s\ns2 l 0777 -> x x2=s\n",
	},
	{
		name: "a hard link's target is found through symlinks, inside the root",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tDir("d"), tReg("d/f", "1"), tSym("l", "/d"), tLink("h", "../l/f"), tSym("d/ls", "f"), tLink("h2", "l/ls"))}
		},
		want: "d d 0755\nd/f f 0644 \"1\" x2=d/f\nd/ls l 0777 -> f x2=d/ls\nh f 0644 \"1\" x2=d/f\nh2 l 0777 -> f x2=d/ls\nl l 0777 -> /d\n",
	},
	{
		name: "a hard link before its target",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tLink("b", "a"), tReg("a", "1"))}
		},
		fails: `layer 0: tar entry "b": malformed layer: hard link to "a", which does not exist`,
	},
	{
		name: "a hard link to itself",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", "1"), tLink("a", "a"))}
		},
		fails: `hard link to "a", which does not exist`,
	},
	{
		name: "a hard link to a directory",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tDir("d"), tLink("a", "d"))}
		},
		fails: `hard link to "d", a directory`,
	},
	{
		name: "a hard link to a removed target",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", "1")), tarOf(t, tWhite("", "a"), tLink("b", "a"))}
		},
		fails: `layer 1: tar entry "b"`,
	},
	{
		name: "a hard link's target removed or replaced afterwards keeps its content",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tReg("a", "1"), tReg("c", "2"), tReg("e", "3")),
				tarOf(t, tLink("b", "a"), tWhite("", "a"), tLink("d", "c"), tReg("c", "new"), tLink("z", "e")),
				tarOf(t, tReg("e", "other")),
			}
		},
		want: "b f 0644 \"1\"\nc f 0644 \"new\"\nd f 0644 \"2\"\ne f 0644 \"other\"\nz f 0644 \"3\"\n",
	},
	{
		name: "whiteouts for nothing",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("f", "1"), tWhite("", "no"), tWhite("no/where/", "x"), tWhite("f/", "x"), tOpaque("nodir/"), tOpaque("f/"))}
		},
		want: "f f 0644 \"1\"\n",
	},
	{
		name: "a whiteout hides what lies below, not what its own layer brings",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tReg("a", "1"), tReg("b", "1"), tDir("d"), tReg("d/x", ""), tDir("e").mode(0o711), tReg("e/x", ""), tDir("g"), tDir("g/h"), tReg("g/h/x", "")),
				tarOf(t, tWhite("", "a"), tReg("a", "2"), tReg("b", "2"), tWhite("", "b"), tWhite("", "d"), tReg("e/new", ""), tWhite("", "e"), tWhite("g/h/", "x")),
			}
		},
		want: "a f 0644 \"2\"\nb f 0644 \"2\"\ne d 0711\ne/new f 0644 \"\"\ng d 0755\ng/h d 0755\n",
	},
	{
		name: "whiteouts of any type, through symlinks",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tDir("d"), tReg("d/x", ""), tReg("d/y", ""), tSym("l", "/d")),
				tarOf(t, tDir("l/.wh.x"), tSym("d/.wh.y", "whatever"), tChar(".wh.none", 1, 1)),
			}
		},
		want: "d d 0755\nl l 0777 -> /d\n",
	},
	{
		name: "opaque markers in any order",
		layers: func(t testing.TB) [][]byte {
			base := tarOf(t, tDir("a"), tReg("a/old", ""), tDir("a/s"), tReg("a/s/old", ""), tDir("b"), tReg("b/old", ""), tDir("b/s"), tReg("b/s/old", ""))
			return [][]byte{base, tarOf(t,
				tOpaque("a/"), tDir("a"), tReg("a/new", ""), tDir("a/s").mode(0o700), tReg("a/s/new", ""),
				tDir("b"), tReg("b/new", ""), tDir("b/s").mode(0o700), tReg("b/s/new", ""), tOpaque("b/"))}
		},
		want: "a d 0755\na/new f 0644 \"\"\na/s d 0700\na/s/new f 0644 \"\"\nb d 0755\nb/new f 0644 \"\"\nb/s d 0700\nb/s/new f 0644 \"\"\n",
	},
	{
		name: "an opaque root",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", ""), tDir("d"), tReg("d/x", "")), tarOf(t, tReg("b", ""), tOpaque(""))}
		},
		want: "b f 0644 \"\"\n",
	},
	{
		name: "a whiteout without a name",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", ""), tReg("d/.wh.", ""))}
		},
		fails: "whiteout with an empty name",
		stock: "takes it for an opaque marker",
	},
	{
		name: "a whiteout of dot-dot",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("d/.wh...", ""))}
		},
		fails: "whiteout of a directory",
		stock: "would leave the root",
	},
	{
		name: "a layer listed twice",
		layers: func(t testing.TB) [][]byte {
			l := tarOf(t, tDir("d"), tReg("d/a", "1"), tLink("d/b", "d/a"), tWhite("d/", "c"))
			return [][]byte{l, l}
		},
		want: "d d 0755\nd/a f 0644 \"1\" x2=d/a\nd/b f 0644 \"1\" x2=d/a\n",
	},
	{
		name: "an empty layer",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t), tarOf(t, tReg("a", "1")), tarOf(t)}
		},
		want: "a f 0644 \"1\"\n",
	},
	{
		name: "a layer that ends early at an entry's boundary",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOpen(t, tReg("a", "1")), append(tarOpen(t, tReg("b", "2")), make([]byte, tarBlock)...), {}}
		},
		want: "a f 0644 \"1\"\nb f 0644 \"2\"\n",
	},
	{
		name: "a layer that ends in the last padding",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOpen(t, tReg("a", "1"))[:tarBlock+1]}
		},
		want: "a f 0644 \"1\"\n",
	},
	{
		name: "a layer that ends early in data",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOpen(t, tReg("a", strings.Repeat("x", 2000)))[:tarBlock+1999]}
		},
		fails: "unexpected end of the tar stream",
	},
	{
		name: "a layer that ends early in a header",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOpen(t, tReg("a", "1"), tReg("b", ""))[:2*tarBlock+100]}
		},
		fails: "unexpected end of the tar stream",
	},
	{
		name: "a layer that ends after an extended header",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOpen(t, tReg("a", "").xattr("user.a", "b"))[:2*tarBlock]}
		},
		fails: "after an extended header",
		stock: "overlooks it",
	},
	{
		name: "PAX and GNU long names",
		layers: func(t testing.TB) [][]byte {
			long := strings.Repeat("n", 255)
			gnu := tReg(long, "1")
			gnu.Format = tar.FormatGNU
			pax := tReg("d/"+long, "2")
			pax.Format = tar.FormatPAX
			sym := tSym("s", strings.Repeat("t/", 150))
			sym.Format = tar.FormatGNU
			return [][]byte{tarOf(t, gnu, tDir("d"), pax, sym, tReg(strings.Repeat("p", 90)+"/"+strings.Repeat("q", 90), "3"))}
		},
		want: "d d 0755\nd/" + strings.Repeat("n", 255) + " f 0644 \"2\"\n" + strings.Repeat("n", 255) + " f 0644 \"1\"\n" +
			strings.Repeat("p", 90) + " d 0755 @0.000000000\n" + strings.Repeat("p", 90) + "/" + strings.Repeat("q", 90) + " f 0644 \"3\"\n" +
			"s l 0777 -> " + strings.Repeat("t/", 150) + "\n",
	},
	{
		name: "a component of 256 bytes",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg(strings.Repeat("n", 256), "1"))}
		},
		fails: "path component of more than 255 bytes",
	},
	{
		name: "a whiteout of a name of 255 bytes",
		layers: func(t testing.TB) [][]byte {
			name := strings.Repeat("n", 255)
			return [][]byte{tarOf(t, tDir("d"), tReg("d/"+name, "1"), tReg("f", "")), tarOf(t, tWhite("d/", name))}
		},
		want: "d d 0755\nf f 0644 \"\"\n",
	},
	{
		name: "a whiteout of a name of 256 bytes",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tWhite("", strings.Repeat("n", 256)))}
		},
		fails: "path component of more than 255 bytes",
	},
	{
		name: "a directory whose name is a whiteout's of 255 bytes",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg(".wh."+strings.Repeat("n", 255)+"/f", ""))}
		},
		fails: "path component of more than 255 bytes",
	},
	{
		name: "a path of more than 4096 bytes",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg(strings.Repeat("0123456789/", 400)+"x", "1"))}
		},
		fails: "path of more than 4096 bytes",
	},
	{
		name: "base-256 ids and nanoseconds",
		layers: func(t testing.TB) [][]byte {
			e := tReg("a", "1").own(1<<31+5, 1<<30)
			e.Format = tar.FormatGNU
			return [][]byte{tarOf(t, e, tReg("b", "").own(1<<31+6, 7).at(1600000000, 123456789), tReg("c", "").at(-2, 5e8))}
		},
		want: "a f 0644 2147483653:1073741824 \"1\"\nb f 0644 2147483654:7 @1600000000.123456789 \"\"\nc f 0644 @-2.500000000 \"\"\n",
	},
	{
		name: "the mode keeps suid, sgid and sticky; a symlink has none",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg("a", "").mode(0o104755), tDir("d").mode(0o41777), tReg("g", "").mode(0o2755), tSym("l", "a").mode(0o600).own(1, 2))}
		},
		want: "a f 4755 \"\"\nd d 1777\ng f 2755 \"\"\nl l 0777 1:2 -> a\n",
	},
	{
		name: "extended attributes, and those that no layer may set",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{
				tarOf(t, tReg("a", "").xattr("user.b", "2\x00bin").xattr("user.a", "1").xattr("trusted.overlay.opaque", "y").xattr("security.selinux", "no"), tDir("d").xattr("user.x", "old").xattr("user.y", "old")),
				tarOf(t, tDir("d").xattr("user.x", "new")),
			}
		},
		want:  "a f 0644 \"\" trusted.overlay.opaque=\"y\" user.a=\"1\" user.b=\"2\\x00bin\"\nd d 0755 user.x=\"new\"\n",
		stock: "0.4.7 ignores trusted.overlay.*",
	},
	{
		name: "names of the whiteout prefix inside a path",
		layers: func(t testing.TB) [][]byte {
			return [][]byte{tarOf(t, tReg(".wh.d/x", "1")), tarOf(t, tReg("a", ""))}
		},
		want: ".wh.d d 0755 @0.000000000\n.wh.d/x f 0644 \"1\"\na f 0644 \"\"\n",
	},
	{
		name: "names that are not UTF-8, or hold newlines and backslashes",
		layers: func(t testing.TB) [][]byte {
			e := tReg("\xff\xfe\n\\", "1")
			e.Format = tar.FormatGNU
			return [][]byte{tarOf(t, e)}
		},
		want: "\xff\xfe\n\\ f 0644 \"1\"\n",
	},
}

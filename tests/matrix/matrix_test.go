// Package matrix does each operation on each kind of object, and each pair of objects,
// in a mounted image and on a local disk: every errno and every tree has to be the same.
package matrix

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var (
	env *imagetest.Env
	// every is 1 for all cases; make test does some, make test-posix all.
	every = flag.Int("every", 8, "do one case of this many, beginning with a random one")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 20*time.Minute))
}

// objects are what each case's directory has from the layers. "linked" has a second
// name; "merged" is a directory of both layers; those of upper are made in the mount.
var objects = []string{"file", "empty-file", "linked", "empty", "populated", "merged", "to-file", "to-dir", "broken", "loop",
	"fifo", "device", "upper-file", "upper-dir", "upper-link", "none"}

const lowerText = `dir CASE 0755
file CASE/file 0640 "content of a file"
file CASE/empty-file 0644 ""
file CASE/linked 0644 "of two names"
hardlink CASE/other CASE/linked
dir CASE/empty 0711
dir CASE/populated 0755
file CASE/populated/x 0644 "x"
dir CASE/populated/sub 0755
file CASE/populated/sub/y 0600 "y"
dir CASE/merged 0750
file CASE/merged/low 0644 "low"
file CASE/merged/gone 0644 "gone"
symlink CASE/to-file file
symlink CASE/to-dir populated
symlink CASE/broken nowhere
symlink CASE/loop loop
fifo CASE/fifo 0620
char CASE/device 0600 1,3
`

const upperText = `dir CASE/merged 0755
file CASE/merged/high 0644 "high"
whiteout CASE/merged/gone
`

// makeUpper makes what only the mount's upper has.
func makeUpper(dir string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "upper-file"), []byte("of the upper"), 0o604),
		os.Mkdir(filepath.Join(dir, "upper-dir"), 0o751),
		os.WriteFile(filepath.Join(dir, "upper-dir/z"), []byte("z"), 0o644),
		os.Symlink("upper-file", filepath.Join(dir, "upper-link")),
		os.Chmod(filepath.Join(dir, "merged/low"), 0o600), // copied up
	)
}

// step is one case: an operation on paths of its directory. What it returns beside the
// error counts too.
type step struct {
	name string
	run  func(dir string) (string, error)
}

func at(dir, p string) string { return filepath.Join(dir, p) }

func noValue(f func(dir string) error) func(string) (string, error) {
	return func(dir string) (string, error) { return "", f(dir) }
}

// openFlags are combinations that open(2) gives a meaning.
var openFlags = map[string]int{
	"read": unix.O_RDONLY, "write": unix.O_WRONLY, "read-write": unix.O_RDWR, "create": unix.O_WRONLY | unix.O_CREAT,
	"create-exclusive": unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, "truncate": unix.O_WRONLY | unix.O_TRUNC,
	"read-truncate": unix.O_RDONLY | unix.O_TRUNC, "append": unix.O_WRONLY | unix.O_APPEND, "directory": unix.O_DIRECTORY,
	"no-follow": unix.O_RDWR | unix.O_NOFOLLOW, "path": unix.O_PATH, "create-directory": unix.O_CREAT | unix.O_DIRECTORY,
	"tmpfile": unix.O_TMPFILE | unix.O_RDWR, "create-no-follow": unix.O_CREAT | unix.O_RDWR | unix.O_NOFOLLOW,
}

// openAndUse opens, writes and reads, and tells how each went.
func openAndUse(p string, flags int) (string, error) {
	fd, err := unix.Open(p, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	said := fmt.Sprintf("type %o", st.Mode&unix.S_IFMT)
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		n, err := unix.Write(fd, []byte("WRITTEN"))
		said += fmt.Sprintf(" wrote %d %v", n, err)
		buf := make([]byte, 64)
		n, err = unix.Pread(fd, buf, 0)
		said += fmt.Sprintf(" read %q %v", buf[:max(n, 0)], err)
	}
	return said, nil
}

// steps are all cases.
func steps() []step {
	var out []step
	add := func(name string, run func(dir string) (string, error)) { out = append(out, step{name, run}) }
	for _, a := range objects {
		for name, flags := range openFlags {
			add("open "+name+" "+a, func(dir string) (string, error) { return openAndUse(at(dir, a), flags) })
		}
		single := map[string]func(p string) error{
			"unlink": unix.Unlink, "rmdir": unix.Rmdir,
			"mkdir":   func(p string) error { return unix.Mkdir(p, 0o755) },
			"mknod":   func(p string) error { return unix.Mknod(p, unix.S_IFIFO|0o644, 0) },
			"symlink": func(p string) error { return unix.Symlink("file", p) },
			"chmod":   func(p string) error { return unix.Chmod(p, 0o4751) },
			"chown":   func(p string) error { return unix.Chown(p, 12, 34) },
			"lchown":  func(p string) error { return unix.Lchown(p, 12, 34) },
			"utimens": func(p string) error {
				return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 1}, {Sec: 2}}, 0)
			},
			"lutimens": func(p string) error {
				return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 3}, {Sec: 4}}, unix.AT_SYMLINK_NOFOLLOW)
			},
			"truncate":                  func(p string) error { return unix.Truncate(p, 5) },
			"extend":                    func(p string) error { return unix.Truncate(p, 5000) },
			"setxattr":                  func(p string) error { return unix.Setxattr(p, "user.t", []byte("v"), 0) },
			"lsetxattr of root":         func(p string) error { return unix.Lsetxattr(p, "trusted.t", []byte("v"), 0) },
			"removexattr":               func(p string) error { return unix.Removexattr(p, "user.none") },
			"create below":              func(p string) error { return os.WriteFile(p+"/new", []byte("n"), 0o644) },
			"look below":                func(p string) error { _, err := os.Lstat(p + "/x"); return err },
			"unlink with slash":         func(p string) error { return unix.Unlink(p + "/") },
			"rename to itself":          func(p string) error { return unix.Rename(p, p) },
			"rename below itself":       func(p string) error { return unix.Rename(p, p+"/below") },
			"link to a directory's dot": func(p string) error { return unix.Link(p, p+"/.") },
			"rename dot":                func(p string) error { return unix.Rename(p+"/.", p+"2") },
			"rmdir dot":                 func(p string) error { return unix.Rmdir(p + "/.") },
			"access":                    func(p string) error { return unix.Access(p, unix.X_OK) },
			"chdir":                     func(p string) error { _, err := os.ReadDir(p); return err },
		}
		for name, f := range single {
			add(name+" "+a, noValue(func(dir string) error { return f(at(dir, a)) }))
		}
		add("readlink "+a, func(dir string) (string, error) { return os.Readlink(at(dir, a)) })
		for _, b := range objects {
			for name, flags := range map[string]uint{"rename": 0, "rename without replacing": unix.RENAME_NOREPLACE, "exchange": unix.RENAME_EXCHANGE} {
				add(fmt.Sprintf("%s %s %s", name, a, b), noValue(func(dir string) error {
					return unix.Renameat2(unix.AT_FDCWD, at(dir, a), unix.AT_FDCWD, at(dir, b), flags)
				}))
			}
			add(fmt.Sprintf("link %s %s", a, b), noValue(func(dir string) error { return unix.Link(at(dir, a), at(dir, b)) }))
			add(fmt.Sprintf("rename %s into %s", a, b), noValue(func(dir string) error { return unix.Rename(at(dir, a), at(dir, b+"/moved")) }))
		}
	}
	slices.SortFunc(out, func(a, b step) int { return strings.Compare(a.name, b.name) })
	return out
}

func caseDir(i int) string { return fmt.Sprintf("case%04d", i) }

// outcome says how a step went, its result and the errno.
func outcome(s step, dir string) string {
	value, err := s.run(dir)
	var no unix.Errno
	switch {
	case err == nil:
		return value + " ok"
	case errors.As(err, &no):
		return value + " " + unix.ErrnoName(no)
	}
	return value + " " + err.Error()
}

func TestEachOperationOnEachObjectIsAsOnALocalDisk(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	all := steps()
	if *every > 1 {
		first := rand.IntN(*every)
		var some []step
		for i := first; i < len(all); i += *every {
			some = append(some, all[i])
		}
		all = some
	}
	var lower, upper strings.Builder
	lower.WriteString("dir . 0755\n")
	for i := range all {
		lower.WriteString(strings.ReplaceAll(lowerText, "CASE", caseDir(i)))
		upper.WriteString(strings.ReplaceAll(upperText, "CASE", caseDir(i)))
	}
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: lower.String()}, {Text: upper.String()}}})
	for _, flags := range [][]string{nil, {"--passthrough"}} {
		b := env.Mount(t, layout+":base", flags...)
		local := filepath.Join(t.TempDir(), "local")
		env.MustCommand(t, "cp", "-a", b.Rootfs()+"/.", local)
		failed := 0
		for i, s := range all {
			ours, theirs := at(b.Rootfs(), caseDir(i)), at(local, caseDir(i))
			if err := errors.Join(makeUpper(ours), makeUpper(theirs)); err != nil {
				t.Fatal(err)
			}
			if got, want := outcome(s, ours), outcome(s, theirs); got != want {
				t.Errorf("%s: %s, on a local disk %s", s.name, got, want)
				failed++
			}
		}
		compare := func(when string) {
			want, got := imagetest.MustReadTree(t, local), imagetest.MustReadTree(t, b.Rootfs())
			named := map[string]bool{}
			for _, d := range imagetest.Compare(want, got, imagetest.CompareOptions{DirNlink: true, IgnoreTime: func(string) bool { return true }}) {
				var i int
				if _, err := fmt.Sscanf(d.Path, "case%04d", &i); err == nil && !named[all[i].name] && len(named) < 20 {
					named[all[i].name] = true
					t.Errorf("%s, after %s: %s", when, all[i].name, d.String())
				}
			}
		}
		compare("mounted")
		b.Umount(t)
		b.Remount(t)
		compare("mounted again")
		tag := "new" + fmt.Sprint(len(flags))
		env.Must(t, "repack", "--image", layout+":"+tag, b.Path)
		b.Umount(t)
		b = env.Mount(t, layout+":"+tag) // the stack of layers rotates
		compare("repacked")
		b.Umount(t)
		t.Logf("%d cases, %d of them not as on a local disk (%v)", len(all), failed, flags)
	}
}

package tests

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// editor changes a mounted tree; the first error ends the test.
type editor struct {
	t    *testing.T
	root string
}

func (e editor) path(name string) string { return filepath.Join(e.root, name) }

func (e editor) ok(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e editor) write(name, content string) {
	e.t.Helper()
	e.ok(os.WriteFile(e.path(name), []byte(content), 0o644))
}

func (e editor) append(name, content string) {
	e.t.Helper()
	f, err := os.OpenFile(e.path(name), os.O_APPEND|os.O_WRONLY, 0)
	e.ok(err)
	_, err = f.WriteString(content)
	e.ok(err)
	e.ok(f.Close())
}

func (e editor) mkdir(name string)      { e.t.Helper(); e.ok(os.MkdirAll(e.path(name), 0o755)) }
func (e editor) remove(name string)     { e.t.Helper(); e.ok(os.RemoveAll(e.path(name))) }
func (e editor) rename(from, to string) { e.t.Helper(); e.ok(os.Rename(e.path(from), e.path(to))) }
func (e editor) link(from, to string)   { e.t.Helper(); e.ok(os.Link(e.path(from), e.path(to))) }
func (e editor) symlink(target, name string) {
	e.t.Helper()
	e.ok(os.Symlink(target, e.path(name)))
}
func (e editor) chmod(name string, mode uint32) { e.t.Helper(); e.ok(unix.Chmod(e.path(name), mode)) }
func (e editor) chown(name string, uid, gid int) {
	e.t.Helper()
	e.ok(os.Lchown(e.path(name), uid, gid))
}
func (e editor) xattr(name, attr, value string) {
	e.t.Helper()
	e.ok(unix.Lsetxattr(e.path(name), attr, []byte(value), 0))
}
func (e editor) times(name string, sec int64) {
	e.t.Helper()
	e.ok(os.Chtimes(e.path(name), time.Unix(sec, 0), time.Unix(sec, 0)))
}

// everyKind makes one object of each kind in a new directory.
func (e editor) everyKind(dir string) {
	e.t.Helper()
	e.mkdir(dir)
	e.write(dir+"/file", "content\n")
	e.write(dir+"/empty", "")
	e.link(dir+"/file", dir+"/second-name")
	e.symlink("file", dir+"/symlink")
	e.symlink(strings.Repeat("x/", 2000), dir+"/long-symlink")
	e.ok(unix.Mkfifo(e.path(dir+"/fifo"), 0o640))
	e.ok(unix.Mknod(e.path(dir+"/char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	e.ok(unix.Mknod(e.path(dir+"/block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 300))))
	e.socket(dir + "/socket")
	e.write(dir+"/setuid", "x")
	e.chown(dir+"/setuid", 12, 34)
	e.chmod(dir+"/setuid", 0o6755)
	e.xattr(dir+"/file", "user.test", "value")
	e.xattr(dir+"/file", "trusted.test", "\x00binary\xff")
	e.xattr(dir, "user.of-a-directory", "d")
	e.xattr(dir+"/symlink", "trusted.of-a-symlink", "s")
	e.write(dir+"/"+strings.Repeat("n", 255), "long name")
	e.write(dir+"/\xff\xfe", "no UTF-8")
	e.mkdir(dir + "/sticky")
	e.chmod(dir+"/sticky", 0o3777)
	e.sparse(dir + "/sparse")
	e.mkdir(dir + "/" + strings.Repeat("deep/", 40))
}

// socket leaves a bound socket's name behind. It is bound by a relative name:
// longer than 108 bytes it cannot be.
func (e editor) socket(name string) {
	e.t.Helper()
	short, err := os.MkdirTemp("/tmp", "s")
	e.ok(err)
	defer os.RemoveAll(short)
	link := filepath.Join(short, "d")
	e.ok(os.Symlink(filepath.Dir(e.path(name)), link))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(link, filepath.Base(name)), Net: "unix"})
	e.ok(err)
	l.SetUnlinkOnClose(false)
	e.ok(l.Close())
}

// sparse makes a file of 10 MB with two bytes of data.
func (e editor) sparse(name string) {
	e.t.Helper()
	f, err := os.Create(e.path(name))
	e.ok(err)
	_, err = f.WriteAt([]byte("a"), 1<<20)
	e.ok(err)
	_, err = f.WriteAt([]byte("b"), 9<<20)
	e.ok(err)
	e.ok(f.Truncate(10 << 20))
	e.ok(f.Close())
}

// touchedAndReverted changes a file and puts everything back: no layer has it.
func (e editor) touchedAndReverted(name string) {
	e.t.Helper()
	before, err := os.ReadFile(e.path(name))
	e.ok(err)
	info, err := os.Stat(e.path(name))
	e.ok(err)
	e.append(name, "for a while")
	e.ok(os.Truncate(e.path(name), info.Size()))
	e.ok(os.Chtimes(e.path(name), info.ModTime(), info.ModTime()))
	after, err := os.ReadFile(e.path(name))
	e.ok(err)
	if !bytes.Equal(before, after) {
		e.t.Errorf("%s: append and truncate left other content", name)
	}
}

// editOdd changes the odd image in every way that a rootfs is changed.
func editOdd(t *testing.T, root string) {
	e := editor{t, root}
	e.everyKind("made")
	e.touchedAndReverted("etc/passwd")
	e.append("etc/config", "appended")
	e.chmod("dev/null", 0o600)
	e.chown("caps/link", 70, 80)
	e.chown("caps/ping", 1, 1) // takes the capability away
	e.remove("caps/big")
	e.append("var/tmp/a", "seen by the other name")
	e.link("var/tmp/c", "var/third")
	e.remove("hidden")
	e.mkdir("hidden") // hides what was below
	e.write("hidden/fresh", "f")
	e.rename("deep", "moved")
	e.write("moved/1/2/new", "n")
	e.remove("moved/1/2/3/file")
	e.rename("moved/1/2/3", "three")
	e.rename("big/zero", "big/hero")
	e.ok(unix.Renameat2(unix.AT_FDCWD, e.path("big/random"), unix.AT_FDCWD, e.path("gone"), unix.RENAME_EXCHANGE))
	e.remove("link")
	e.symlink("etc", "link")
	e.remove("bin")
	e.mkdir("bin")
	e.write("bin/sh", "new shell")
	e.times("old-time/file", 0)
	e.chmod("old-time", 0o700)
	e.times("old-time", 5)
	e.write("\xff\xfe not utf-8", "changed")
	e.remove("line\nbreak")
}

// editBusybox is what somebody does to a small image.
func editBusybox(t *testing.T, root string) {
	e := editor{t, root}
	e.everyKind("root/made")
	e.append("etc/passwd", "user:x:1000:1000::/home:/bin/sh\n")
	e.touchedAndReverted("etc/group")
	e.remove("bin/vi")
	e.write("bin/vi", "#!/bin/sh\n")
	e.link("bin/busybox", "sbin/init")
	e.rename("var", "usr/var")
	e.mkdir("var")
	e.chmod("tmp", 0o755)
	e.chown("home", 1000, 1000)
}

// editDebian is what somebody does to a Debian system without running anything of
// it.
func editDebian(t *testing.T, root string) {
	e := editor{t, root}
	e.everyKind("srv/made")
	e.append("etc/os-release", "VARIANT=edited\n") // through a symlink
	e.touchedAndReverted("etc/debian_version")
	e.remove("usr/share/doc")
	e.rename("usr/share/zoneinfo", "opt/tz")
	e.chmod("etc", 0o750)
	e.chown("usr/bin/apt-get", 3, 4)
	e.link("usr/bin/dpkg", "usr/local/bin/dpkg2")
	e.remove("usr/bin/perl")
	e.rename("usr/lib/apt", "usr/lib/apt.old")
	e.mkdir("usr/lib/apt")
	e.write("usr/lib/apt/README", "moved to apt.old\n")
	e.ok(filepath.Walk(e.path("var/lib/dpkg"), func(name string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, 2000, 2000)
	}))
}

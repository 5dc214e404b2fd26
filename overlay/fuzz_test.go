package overlay

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzOverrideStat reads any text: an error, or a value that is written back as
// one with the same meaning.
func FuzzOverrideStat(f *testing.F) {
	for _, s := range []string{"0:0:755", "1:2:4755:char-1-3", "5:5:777:symlink", "0:0:644:block-8-0", "::", "0:0:9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOverrideStat(s)
		if err != nil {
			return
		}
		again, err := parseOverrideStat(o.String())
		if err != nil || again != o {
			t.Fatalf("%q became %q: %+v, %v", s, o.String(), again, err)
		}
	})
}

// FuzzInheritACL applies any bytes as a default ACL: the result never allows more
// than the mode or the ACL, and never panics.
func FuzzInheritACL(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}, uint32(0o666))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, acl []byte, mode uint32) {
		mode &= 0o7777
		access, got, ok := inheritACL(acl, mode)
		if !ok && (access != nil || got != mode) {
			t.Fatalf("refused, and changed %o to %o", mode, got)
		}
		if got&^mode != 0 {
			t.Fatalf("mode %o became %o", mode, got)
		}
		if access != nil && len(access) != len(acl) {
			t.Fatalf("%d bytes became %d", len(acl), len(access))
		}
	})
}

// FuzzUpperAttributes opens a union whose upper holds a file and a directory with
// any private attributes: every operation answers, with an error or not.
func FuzzUpperAttributes(f *testing.F) {
	f.Add("3", "/a/b", "y", "0:0:644", "1.5 1700000000.000000001 0102")
	f.Add("999999", "a/../..", "n", "1:1:777:symlink", "-1.0 9999999999999.0")
	f.Add("-1", "", "", "x", "x")
	f.Fuzz(func(t *testing.T, ino, redirect, opaque, override, filling string) {
		x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: true})
		x.unmount()
		for _, name := range []string{"a", "top"} {
			p := x.dir + "/upper/" + name
			var err error
			if name == "a" {
				err = os.Mkdir(p, 0o755)
			} else {
				err = os.WriteFile(p, []byte("content"), 0o644)
			}
			must(t, err)
			for attr, value := range map[string]string{
				xattrIno: ino, xattrRedirect: redirect, xattrOpaque: opaque, xattrOverride: override, xattrMetacopy: "", xattrFilling: filling,
			} {
				must(t, unix.Setxattr(p, attr, []byte(value), 0))
			}
		}
		x.mount()
		for _, name := range []string{"a", "top"} {
			ino, err := x.ino(name)
			if err != nil {
				continue
			}
			if h, err := x.fs.Open(ino, unix.O_RDWR); err == nil {
				buf := make([]byte, 64)
				_, _ = h.ReadAt(buf, 0)
				_, _ = h.WriteAt([]byte("x"), 0)
				must(t, h.Close())
			}
			if d, err := x.fs.OpenDir(ino); err == nil {
				for i := 0; ; i++ {
					if _, ok, err := d.Entry(i); !ok || err != nil {
						break
					}
				}
			}
			_ = chmodIno(x, ino)
			_ = fsRename(x, name, "moved-"+name, 0)
		}
	})
}

func chmodIno(x *fixture, ino Ino) error {
	_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o700})
	return err
}

package sys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Each way to a file gives what the others do: by name, by descriptor and by one opened
// with O_PATH, with the system calls of Linux 6.13 and without.
func TestXattr(t *testing.T) {
	had := lacksXattrat(t)
	for _, without := range []bool{false, true} {
		for _, way := range []string{"name", "file", "path", "link"} {
			noXattrat.Store(without || had)
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
				t.Fatal(err)
			}
			switch way {
			case "name":
				testXattr(t, open(t, dir, unix.O_PATH), "file")
			case "file":
				testXattr(t, open(t, file, unix.O_RDWR), "")
			case "path":
				testXattr(t, open(t, file, unix.O_PATH), "")
			case "link": // is not followed, and takes no user attribute
				fd := open(t, dir, unix.O_PATH)
				if err := Setxattr(fd, "link", "user.a", []byte("value"), 0); !errors.Is(err, unix.EPERM) {
					t.Errorf("without %v: set on a symlink: %v, want EPERM", without, err)
				}
				if n, err := Listxattr(open(t, file, unix.O_RDONLY), "", nil); err != nil || n != 0 {
					t.Errorf("without %v: its target has %d bytes of names, %v", without, n, err)
				}
			}
			if noXattrat.Load() != (without || had) {
				t.Errorf("by %s: the kernel is said to lack the calls, for what it was not asked", way)
			}
		}
	}
}

// lacksXattrat asks the kernel.
func lacksXattrat(t *testing.T) bool {
	t.Helper()
	_, _ = Getxattr(open(t, t.TempDir(), unix.O_PATH), "none", "user.a", nil)
	lacks := noXattrat.Load()
	t.Cleanup(func() { noXattrat.Store(lacks) })
	return lacks
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func testXattr(t *testing.T, dir int, name string) {
	t.Helper()
	const attr = "user.a"
	if _, err := Getxattr(dir, name, attr, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("get what is not there: %v, want ENODATA", err)
	}
	if err := Setxattr(dir, name, attr, []byte("value"), unix.XATTR_CREATE); err != nil {
		t.Error(err)
	}
	if err := Setxattr(dir, name, attr, nil, unix.XATTR_CREATE); !errors.Is(err, unix.EEXIST) {
		t.Errorf("create again: %v, want EEXIST", err)
	}
	buf := make([]byte, 64)
	if n, err := Getxattr(dir, name, attr, buf); err != nil || string(buf[:n]) != "value" {
		t.Errorf("get %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := Getxattr(dir, name, attr, nil); err != nil || n != len("value") {
		t.Errorf("size %d, %v", n, err)
	}
	if _, err := Getxattr(dir, name, attr, buf[:2]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("get into too little: %v, want ERANGE", err)
	}
	if n, err := Listxattr(dir, name, buf); err != nil || string(buf[:n]) != attr+"\x00" {
		t.Errorf("list %q, %v", buf[:max(n, 0)], err)
	}
	if err := Removexattr(dir, name, attr); err != nil {
		t.Error(err)
	}
	if n, err := Listxattr(dir, name, nil); err != nil || n != 0 {
		t.Errorf("%d bytes of names are left, %v", n, err)
	}
	if err := Removexattr(dir, name, attr); !errors.Is(err, unix.ENODATA) {
		t.Errorf("remove again: %v, want ENODATA", err)
	}
	if err := Setxattr(dir, name+"\x00", attr, nil, 0); err == nil {
		t.Error("a name with a NUL was taken")
	}
}

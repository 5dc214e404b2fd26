package extract

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// sparseTar holds "sparse", 64 MiB of which four bytes in the middle are data
// (GNU's PAX format 1.0, tar manual, "Storing Sparse Files").
func sparseTar(t testing.TB) []byte {
	t.Helper()
	text := fmt.Sprintf("1\n%d\n4\n", 32<<20)
	body := append([]byte(text), make([]byte, 512-len(text))...)
	body = append(body, "data"...)
	var b bytes.Buffer
	// archive/tar refuses to write these records: the header is made by hand.
	records := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=sparse", fmt.Sprintf("GNU.sparse.realsize=%d", 64<<20)} {
		n := len(kv) + 4
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	for _, h := range []struct {
		hdr  tar.Header
		flag byte
		body []byte
	}{
		{tar.Header{Name: "PaxHeaders/sparse", Size: int64(len(records)), Mode: 0o644, Format: tar.FormatUSTAR}, 'x', []byte(records)},
		{tar.Header{Name: "GNUSparseFile/sparse", Size: int64(len(body)), Mode: 0o644, Format: tar.FormatUSTAR}, '0', body},
	} {
		var one bytes.Buffer
		h.hdr.Typeflag = tar.TypeReg
		w := tar.NewWriter(&one)
		if err := w.WriteHeader(&h.hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(h.body); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		p := one.Bytes()
		p[156] = h.flag
		copy(p[148:], "        ")
		sum := 0
		for _, c := range p[:512] {
			sum += int(c)
		}
		copy(p[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(p)
	}
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

// A tree can be deeper than a path is long: each layer goes on through a symlink
// where the one below has ended.
func TestTreesDeeperThanAPathAreExtractedAndRemoved(t *testing.T) {
	deep := strings.Repeat("d/", 1900)
	im := openImage(t, "dir "+deep+"x 0755\nsymlink s1 "+deep+"x", "dir s1/"+deep+"y 0755\nsymlink s2 s1/"+deep+"y",
		"file s2/"+deep+"f 0644 bottom")
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 512 // far less than the depth
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}()
	dest, res := extractTo(t, im, Options{Record: true, Rootless: os.Geteuid() != 0})
	if res.Entries < 3*1900 {
		t.Errorf("%d entries", res.Entries)
	}
	dir, err := unix.Open(dest, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for depth := range 3 * 1900 { // to the bottom, step by step
		next, err := openat(dir, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) {
			for _, name := range []string{"x", "y"} {
				if next, err = openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
					break
				}
			}
		}
		if err != nil {
			t.Fatalf("at depth %d: %v", depth, err)
		}
		if err := unix.Close(dir); err != nil {
			t.Fatal(err)
		}
		dir = next
	}
	if err := unix.Close(dir); err != nil {
		t.Fatal(err)
	}
	if err := Remove(filepath.Dir(dest), "rootfs"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("something is left")
	}
}

func TestRemovingFollowsNoSymlink(t *testing.T) {
	outside := t.TempDir()
	writeFiles(t, outside, map[string]string{"keep": "x"})
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"tree/a/f": "x"})
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "tree/a/out")), os.Symlink(outside, filepath.Join(dir, "link")),
		os.Chmod(filepath.Join(dir, "tree/a"), 0)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tree", "link", "nothing"} {
		if err := Remove(dir, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left := imagetest.MustReadTree(t, dir); len(left) != 1 {
		t.Errorf("left is %v", left.Paths())
	}
	if _, err := os.Lstat(filepath.Join(outside, "keep")); err != nil {
		t.Error(err)
	}
}

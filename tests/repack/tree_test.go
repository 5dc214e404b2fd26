package repack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// differences lists, at most ten, the paths that are not the same in two trees in
// all that a layer holds. Sockets are not looked at.
func differences(t *testing.T, want, got string) string {
	t.Helper()
	a, b := describe(t, want), describe(t, got)
	var out []string
	for p, line := range a {
		if b[p] != line {
			out = append(out, fmt.Sprintf("%s\n  want %s\n  got  %s", p, line, b[p]))
		}
	}
	for p, line := range b {
		if _, have := a[p]; !have {
			out = append(out, fmt.Sprintf("%s\n  want nothing\n  got  %s", p, line))
		}
	}
	slices.Sort(out)
	return strings.Join(out[:min(len(out), 10)], "\n")
}

// describe is a line for each path of a tree.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{} // path by inode
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		line, err := describeOne(p, &st)
		if err != nil {
			return err
		}
		if !d.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			line += " inode of " + first[st.Ino]
		}
		out[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func describeOne(p string, st *unix.Stat_t) (string, error) {
	line := fmt.Sprintf("%o %d:%d nlink %d rdev %d mtime %d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, st.Mtim.Sec)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" size %d %.8x", st.Size, sha256.Sum256(data))
	case unix.S_IFLNK:
		to, err := os.Readlink(p)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" size %d -> %q", st.Size, to)
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return "", err
	}
	var xattrs []string
	for key := range bytes.SplitSeq(buf[:max(n, 0)], []byte{0}) {
		if len(key) == 0 {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, string(key), value)
		if err != nil {
			return "", fmt.Errorf("%s of %s: %w", key, p, err)
		}
		if n > 0 { // no tar holds an empty one
			xattrs = append(xattrs, fmt.Sprintf("%s=%.40q", key, value[:n]))
		}
	}
	slices.Sort(xattrs)
	return line + " " + strings.Join(xattrs, " "), nil
}

package stress

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const partyArg = "stress-party"

// worker is one process of a world. Its root is the world's.
type worker struct {
	began time.Time // what changed since then is "now"
	fds   [slots]int
}

// party serves operations from stdin until it ends: a JSON line each, answered by one.
func party(args []string) int {
	runtime.LockOSThread() // each thread has its own credentials, which a file remembers
	root := args[0]
	n, err := strconv.Atoi(args[1])
	if err == nil {
		err = become(root, n)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	began, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w := &worker{began: time.Unix(began, 0)}
	for i := range w.fds {
		w.fds[i] = -1
	}
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var o op
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := out.Encode(w.do(o)); err != nil {
			return 1
		}
	}
	return 0
}

// become enters the world as one of its processes.
func become(root string, n int) error {
	if err := errors.Join(unix.Chroot(root), unix.Chdir("/")); err != nil {
		return err
	}
	unix.Umask(0o022)
	p := parties[n]
	return errors.Join(syscall.Setgroups(p.groups), syscall.Setgid(p.groups[0]), syscall.Setuid(p.uid))
}

// answer is the errno, or what the operation returned.
func answer(value string, err error) string {
	var no unix.Errno
	if errors.As(err, &no) {
		return unix.ErrnoName(no)
	}
	if err != nil {
		return err.Error()
	}
	return "ok " + value
}

// do does an operation. The answer says too whose times it changed: those of its
// paths and their directories.
func (w *worker) do(o op) string {
	if o.Kind == "snapshot" {
		return answer(w.snapshot())
	}
	run, ok := operations[o.Kind]
	if !ok {
		return "no such operation"
	}
	watched := []string{o.A, filepath.Dir(o.A)}
	if strings.HasPrefix(o.B, "/") {
		watched = append(watched, o.B, filepath.Dir(o.B))
	}
	before := make([]unix.Stat_t, len(watched))
	for i, p := range watched {
		if unix.Lstat(p, &before[i]) != nil {
			before[i].Nlink = 0
		}
	}
	said := answer(run(w, o))
	for i, p := range watched {
		var st unix.Stat_t
		if before[i].Nlink == 0 || unix.Lstat(p, &st) != nil || st.Ino != before[i].Ino {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFIFO && !strings.Contains(o.Kind, "utimens") {
			continue // a write to a fifo changes its times on a disk alone: docs/posix.md
		}
		if st.Mtim != before[i].Mtim {
			said += fmt.Sprintf(" mtime%d", i)
		}
		if st.Ctim != before[i].Ctim {
			said += fmt.Sprintf(" ctime%d", i)
		}
	}
	return said
}

// when is a time that was set, or "now".
func (w *worker) when(t unix.Timespec) string {
	if !time.Unix(t.Unix()).Before(w.began) {
		return "now"
	}
	return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
}

func (w *worker) stat(st *unix.Stat_t) string {
	s := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR: // its size is the file system's business
		s += fmt.Sprintf(" links %d", st.Nlink)
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" n%d dev %d", st.Nlink, st.Rdev)
	default:
		s += fmt.Sprintf(" n%d size %d", st.Nlink, st.Size)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFIFO {
		return s
	}
	return s + " " + w.when(st.Mtim)
}

func (w *worker) slot(o op) int { return w.fds[o.Slot] }

func digest(b []byte) string { return fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b))[:40] }

func filled(o op) []byte { return bytes.Repeat([]byte(o.Data), int(o.N)) }

func nothing(err error) (string, error) { return "", err }

func names(b []byte) string {
	var out []string
	for _, n := range strings.Split(string(b), "\x00") {
		if n != "" {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// snapshot lists the whole tree: attributes, contents, hard links.
func (w *worker) snapshot() (string, error) {
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%q %s", p, w.stat(&st))
		if d.Type() != fs.FileMode(0) && d.Type()&fs.ModeType == 0 {
			fmt.Fprintf(&out, " type %v", d.Type())
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out.WriteString(" " + digest(data))
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out.WriteString(" -> " + target)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if have, ok := first[st.Ino]; ok {
				out.WriteString(" = " + have)
			} else {
				first[st.Ino] = p
			}
		}
		buf := make([]byte, 65536)
		n, err := unix.Llistxattr(p, buf)
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(names(buf[:n])) {
			value := make([]byte, 65536)
			n, err := unix.Lgetxattr(p, name, value)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s=%q", name, value[:n])
		}
		out.WriteByte('\n')
		return nil
	})
	return out.String(), err
}

// acl is an access control list in the kernel's form (linux/posix_acl_xattr.h): the
// owner and others have bits, user 1001 and the mask too.
func acl(bits int64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag  uint16
		perm int64
		id   uint32
	}{{1, 7, ^uint32(0)}, {2, bits, 1001}, {4, 5, ^uint32(0)}, {16, bits | 4, ^uint32(0)}, {32, bits & 5, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(e.perm))
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

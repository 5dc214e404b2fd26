package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// newSource reads where a file is: a path, or a URL that may end in #sha256=HEX.
func newSource(dir string, t Text) (source, error) {
	s := source{pos: t.Pos, text: t.Value}
	if !strings.Contains(t.Value, "://") {
		s.path = hostPath(dir, t.Value)
		return s, nil
	}
	u, err := url.Parse(t.Value)
	if err != nil {
		return s, bad(t.Pos, "%q: %v", t.Value, err)
	}
	if u.Fragment != "" {
		sum, ok := strings.CutPrefix(u.Fragment, "sha256=")
		if !ok || !isSHA256(strings.ToLower(sum)) {
			return s, bad(t.Pos, "%q: want #sha256= and 64 hexadecimal digits", t.Value)
		}
		s.sum = strings.ToLower(sum)
		u.Fragment = ""
	}
	switch {
	case u.Scheme == "file" && (u.Host == "" || u.Host == "localhost"):
		s.path = u.Path
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		s.url = u.String()
	default:
		return s, bad(t.Pos, "%q: want a path, or a URL of http, https or file", t.Value)
	}
	return s, nil
}

// isSHA256 reports whether text is a SHA-256 in hex.
func isSHA256(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

// checkInputs finds what is wrong with a target's files before anything runs.
func checkInputs(k *task) error {
	for _, s := range k.steps {
		for i := range s.copies {
			c := &s.copies[i]
			if c.From.Value != "" {
				continue
			}
			if _, err := os.Stat(c.Source); err != nil {
				return at(c.Pos, fmt.Errorf("copy: %w", err))
			}
		}
		for i := range s.sources {
			if err := s.sources[i].check(s.kind); err != nil {
				return at(s.sources[i].pos, fmt.Errorf("%s: %w", s.kind, err))
			}
		}
	}
	return nil
}

// check looks at the beginning of a file, and at its digest where one is demanded.
func (s *source) check(kind string) error {
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file: %w", s.path, ErrSpec)
	}
	if kind == stepInstall {
		if _, err = packageKind(s.path); err != nil {
			return err
		}
	} else if err := checkTar(s.path); err != nil {
		return err
	}
	if s.sum == "" || s.url != "" { // fetcher.get has compared it
		return nil
	}
	sum, err := hashFile(s.path)
	if err == nil && sum != s.sum {
		err = fmt.Errorf("%s has the sha256 %s, not %s: %w", s.text, sum, s.sum, ErrSpec)
	}
	return err
}

// Kinds of packages.
const (
	packageDeb = ".deb"
	packageRPM = ".rpm"
)

// packageKind tells packages by their first bytes: deb(5), and rpm's lead.
func packageKind(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	head := make([]byte, 96)
	n, err := io.ReadFull(f, head)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("!<arch>\ndebian-binary")):
		return packageDeb, nil
	case n == 96 && bytes.HasPrefix(head, []byte{0xed, 0xab, 0xee, 0xdb}):
		return packageRPM, nil
	}
	return "", fmt.Errorf("%s is no .deb or .rpm package: %w", name, ErrSpec)
}

// checkTar reads the first entry of an archive.
func checkTar(name string) (err error) {
	in, err := openArchive(context.Background(), name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err == nil {
		defer func() { _ = in.Close() }() // ends a decompressor amid its work
		_, err = tar.NewReader(in).Next()
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return fmt.Errorf("%s is no tar archive of a compression known here: %w: %w", name, ErrSpec, err)
	}
	return nil
}

// decompressors are programs for what no library is taken for, as tar(1) calls them.
var decompressors = map[string][]string{
	"LZIP":            {"lzip", "-dc"},
	"\x89LZO\x00\r\n": {"lzop", "-dc"},
	"\x1f\x9d":        {"gzip", "-dc"},
}

// openArchive opens a file to be read decompressed. What it is compressed with is told
// by its first bytes.
func openArchive(ctx context.Context, name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(f, 1<<20)
	head, err := in.Peek(13)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(&fs.PathError{Op: "read", Path: name, Err: err}, f.Close())
	}
	a := &archive{file: f}
	has := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case has("\x1f\x8b"):
		a.Reader, err = gzip.NewReader(in)
	case has("\x28\xb5\x2f\xfd"), len(head) >= 4 && head[0]&0xf0 == 0x50 && has(string(head[:1])+"\x2a\x4d\x18"):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(in); err == nil {
			a.Reader, a.end = z, func() error { z.Close(); return nil }
		}
	case has("\xfd7zXZ\x00"):
		a.Reader, err = xz.NewReader(in)
	case has("BZh"):
		a.Reader = bzip2.NewReader(in)
	case has("\x5d\x00\x00"):
		a.Reader, err = lzma.NewReader(in)
	default:
		a.Reader = in
		for magic, command := range decompressors {
			if has(magic) {
				err = a.pipe(ctx, in, command)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return a, nil
}

// archive is a file that is read decompressed.
type archive struct {
	io.Reader
	file *os.File
	end  func() error // of the decompressor; may be nil
}

func (a *archive) Close() error {
	var err error
	if a.end != nil {
		err = a.end()
	}
	return errors.Join(err, a.file.Close())
}

// pipe reads through a program.
func (a *archive) pipe(ctx context.Context, in io.Reader, command []string) error {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return fmt.Errorf("it needs %s to be read: %w", command[0], err)
	}
	whole := &wholeReader{in: out}
	a.Reader = whole
	a.end = func() error {
		cancel()
		err := cmd.Wait()
		if !whole.ended {
			return nil // nobody wanted the rest
		}
		return err
	}
	return nil
}

// wholeReader knows whether all was read.
type wholeReader struct {
	in    io.Reader
	ended bool
}

func (r *wholeReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.ended = r.ended || errors.Is(err, io.EOF)
	return n, err
}

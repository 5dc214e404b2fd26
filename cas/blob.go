package cas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// tempSeq tells the temporary directories of one process apart.
var tempSeq atomic.Uint64

// tempDir is this process's directory for unfinished blobs. It has the name and
// the lock that umoci's has, so that its gc leaves it while it is in use.
type tempDir struct {
	l    *Layout
	name string
	dir  *os.File // holds the flock
	seq  int
}

// tempFile is a file being written.
type tempFile struct {
	l    *Layout
	name string // relative to the layout; "" once it is published
	f    *os.File
}

// newTemp makes a temporary file in the layout.
func (l *Layout) newTemp(ctx context.Context) (*tempFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.temp == nil {
		t, err := l.makeTempDir()
		if err != nil {
			return nil, err
		}
		l.temp = t
	}
	if err := l.step("create"); err != nil {
		return nil, err
	}
	l.temp.seq++
	name := path.Join(l.temp.name, strconv.Itoa(l.temp.seq))
	f, err := l.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create temporary blob in %s: %w", l.path, err)
	}
	return &tempFile{l: l, name: name, f: f}, nil
}

func (l *Layout) makeTempDir() (*tempDir, error) {
	if err := l.step("mkdir"); err != nil {
		return nil, err
	}
	name := fmt.Sprintf(".umoci-%d-%d-%d", os.Getpid(), time.Now().UnixNano(), tempSeq.Add(1))
	if err := l.root.Mkdir(name, 0o700); err != nil {
		return nil, fmt.Errorf("create temporary directory in %s: %w", l.path, err)
	}
	dir, err := l.root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open temporary directory in %s: %w", l.path, err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock temporary directory in %s: %w", l.path, err), dir.Close())
	}
	return &tempDir{l: l, name: name, dir: dir}, nil
}

func (t *tempDir) remove() error {
	return errors.Join(t.l.root.RemoveAll(t.name), t.dir.Close())
}

// publish makes the file durable and gives it its name.
func (t *tempFile) publish(name string) error {
	if err := t.l.step("fsync"); err != nil {
		return err
	}
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	t.l.chownLikeLayout(t.f)
	if err := t.l.step("rename"); err != nil {
		return err
	}
	if err := t.l.root.Rename(t.name, name); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	t.name = ""
	return t.l.syncDir(path.Dir(name))
}

// chownLikeLayout gives what root writes to the layout's owner, who could not
// manage it otherwise. It is a courtesy: failing is no error.
func (l *Layout) chownLikeLayout(f *os.File) {
	if os.Geteuid() != 0 {
		return
	}
	var st unix.Stat_t
	if dir, err := l.root.Open("."); err == nil {
		defer dir.Close()
		if unix.Fstat(int(dir.Fd()), &st) == nil && (st.Uid != 0 || st.Gid != 0) {
			_ = f.Chown(int(st.Uid), int(st.Gid))
		}
	}
}

func (l *Layout) syncDir(name string) (err error) {
	if err := l.step("fsync"); err != nil {
		return err
	}
	dir, err := l.root.Open(name)
	if err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}

// discard closes the file, and removes it unless it was published.
func (t *tempFile) discard() error {
	err := t.f.Close()
	if t.name == "" {
		return err
	}
	return errors.Join(err, t.l.root.Remove(t.name))
}

// blobName is a blob's path in the layout.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, err)
	}
	return path.Join("blobs", d.Algorithm().String(), d.Encoded()), nil
}

// Blob opens a blob. Its content is not verified.
func (l *Layout) Blob(ctx context.Context, d digest.Digest) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	f, err := l.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %s", ErrBlobNotFound, d, l.path)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return f, nil
}

// ReadBlob reads a whole document, of at most MaxDocument bytes, and verifies size
// and digest. Embedded data is used in place of the blob.
func (l *Layout) ReadBlob(ctx context.Context, desc ispec.Descriptor) ([]byte, error) {
	if desc.Size < 0 || desc.Size > MaxDocument {
		return nil, fmt.Errorf("%s says %d bytes: %w", desc.Digest, desc.Size, ErrTooLarge)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	data := desc.Data
	if data == nil {
		f, err := l.Blob(ctx, desc.Digest)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		var b bytes.Buffer
		if _, err := io.Copy(&b, io.LimitReader(f, desc.Size+1)); err != nil {
			return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
		}
		data = b.Bytes()
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("blob %s in %s: %w", desc.Digest, l.path, ErrDigest)
	}
	if int64(len(data)) != desc.Size {
		return nil, fmt.Errorf("blob %s in %s has another size than %d: %w", desc.Digest, l.path, desc.Size, ErrDigest)
	}
	return data, nil
}

// BlobWriter is a blob being written. Close it in any case.
type BlobWriter struct {
	t    *tempFile
	hash hash.Hash
	size int64
}

// NewBlob begins a blob.
func (l *Layout) NewBlob(ctx context.Context) (*BlobWriter, error) {
	t, err := l.newTemp(ctx)
	if err != nil {
		return nil, err
	}
	return &BlobWriter{t: t, hash: digest.SHA256.Hash()}, nil
}

// Write adds to the blob.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if err := w.t.l.step("write"); err != nil {
		return 0, err
	}
	n, err := w.t.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// Commit makes the blob durable under its digest. That it is there already is no
// error: the content is the same.
func (w *BlobWriter) Commit(ctx context.Context) (digest.Digest, int64, error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	d := digest.NewDigest(digest.SHA256, w.hash)
	name, err := blobName(d)
	if err != nil {
		return "", 0, err
	}
	if err := w.t.l.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return "", 0, fmt.Errorf("publish blob: %w", err)
	}
	return d, w.size, w.t.publish(name)
}

// Close ends the writer; what was not committed is gone.
func (w *BlobWriter) Close() error { return w.t.discard() }

// putJSON writes a document as a blob.
func (l *Layout) putJSON(ctx context.Context, data []byte) (d digest.Digest, size int64, err error) {
	w, err := l.NewBlob(ctx)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.Write(data); err != nil {
		return "", 0, err
	}
	return w.Commit(ctx)
}

package layer

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// The file form of a layer's kept spans:
//
//	[ header 64, to 4096 ][ table: 16 a span, to a multiple of 4096 ][ spans, each at a multiple of 4096 ]
//
// Numbers are little-endian. A span is there where its row of the table has its size,
// CRC-32C and CRC-32 (IEEE), and what lies at its place has them too: rows are written
// after the data, and neither is synced, so that after a power cut a row may be of data
// that is not there. Spans are read and written past the kernel's cache (O_DIRECT), where
// the file system can: what is read of them is cached as the mount's files already.
// docs/cache.md says what this is for.
const (
	keptMagic      = "UMSPAN\r\n"
	keptVersion    = 1
	keptHeaderSize = 64
	keptAlign      = 4096 // what O_DIRECT asks for: of places, lengths and memory
	keptTable      = keptAlign
	keptRowSize    = 16
	keptExt        = ".spans"
)

// Offsets in the header.
const (
	khVersion   = 8
	khSpans     = 12
	khPlainSize = 16
	khSpanSum   = 24 // CRC-32C of the index's spans: where they begin and end
	khDigest    = 28
	khCRC       = 60
)

// spanDisk bounds what the decoded spans of an image's layers take on disk. One is
// shared by all blobs of an image.
type spanDisk struct {
	cache   *Cache
	max     int64         // bytes, of all images of the cache
	writers chan struct{} // one token a span being written

	mu   sync.Mutex // held while room is made
	left int64      // protected by mu: 0 before it was counted
	full atomic.Bool
}

func (c *Cache) newSpanDisk(maxBytes int64) *spanDisk {
	if maxBytes <= 0 {
		return nil
	}
	return &spanDisk{cache: c, max: maxBytes, writers: make(chan struct{}, 2)}
}

// keptSpans is what is kept of one blob's spans.
type keptSpans struct {
	disk   *spanDisk
	blob   digest.Digest
	name   string // in the cache
	header [keptHeaderSize]byte
	spans  int64 // where the spans begin in the file
	size   int64 // of the file

	file atomic.Pointer[keptFile] // nil: none yet
	mu   sync.Mutex               // held while it is made
	off  atomic.Bool              // a failure: nothing more is kept
}

// keptFile is the open file, twice: direct is past the kernel's cache, if that can be.
type keptFile struct{ file, direct *os.File }

// keptOf gives what is kept of a blob's spans; nil where nothing is to be.
func (d *spanDisk) keptOf(src Source, ix *blobIndex) *keptSpans {
	if d == nil || ix.kind == blobRaw {
		return nil
	}
	k := &keptSpans{disk: d, blob: src.Digest, name: keptPath(src.Digest), spans: keptTable + aligned(int64(ix.numSpans())*keptRowSize)}
	k.size = k.place(ix.numSpans(), ix.plainSize)
	le, h := binary.LittleEndian, k.header[:]
	copy(h, keptMagic)
	le.PutUint32(h[khVersion:], keptVersion)
	le.PutUint32(h[khSpans:], uint32(ix.numSpans()))
	le.PutUint64(h[khPlainSize:], uint64(ix.plainSize))
	le.PutUint32(h[khSpanSum:], crc32.Checksum(ix.spans, castagnoli))
	copy(h[khDigest:khCRC], ix.digest[:])
	le.PutUint32(h[khCRC:], crc32.Checksum(h[:khCRC], castagnoli))
	if err := k.open(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.stop(err)
	}
	return k
}

// aligned is n, or the next multiple of keptAlign.
func aligned(n int64) int64 { return (n + keptAlign - 1) &^ (keptAlign - 1) }

// place is where span index lies in the file, which begins at out of the plain stream.
// aligned(a)+aligned(b) ≤ aligned(a+b)+keptAlign, so that none reaches into the next.
func (k *keptSpans) place(index int, out int64) int64 {
	return k.spans + aligned(out) + int64(index)*keptAlign
}

// stop ends the keeping: what cannot be kept is decoded again.
func (k *keptSpans) stop(err error) {
	if !k.off.Swap(true) {
		k.disk.cache.log.Info("decoded content is not kept", "file", k.name, "reason", err)
	}
}

// open opens the file, if it is there and of the same index.
func (k *keptSpans) open() error {
	f, fi, err := k.disk.cache.openFor(k.name, os.O_RDWR)
	if err != nil {
		return err
	}
	err = share(f)
	var header [keptHeaderSize]byte
	if err == nil {
		_, err = f.ReadAt(header[:], 0)
	}
	if err == nil && (header != k.header || fi.Size() != k.size) {
		err = fmt.Errorf("%s: %w", f.Name(), fs.ErrNotExist) // of another index: made anew
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	direct, err := os.OpenFile(sys.ProcPath(int(f.Fd()), ""), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		direct = f // not on every file system
	}
	k.file.Store(&keptFile{f, direct})
	return nil
}

// make makes the file where it is missing.
func (k *keptSpans) make() (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file.Load() != nil {
		return nil
	}
	c := k.disk.cache
	unlock, err := c.lockBlob(context.Background(), k.blob)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := k.open(); !errors.Is(err, fs.ErrNotExist) {
		return err // another process was faster, or a failure
	}
	t, err := c.create(k.name)
	if err != nil {
		return err
	}
	t.mode = 0o600
	if _, err = t.f.Write(k.header[:]); err == nil {
		err = t.f.Truncate(k.size)
	}
	if err != nil {
		return errors.Join(err, t.discard())
	}
	if err := t.publish(); err != nil {
		return err
	}
	return k.open()
}

// keptRow says of a span what its bytes are: size, CRC-32C, CRC-32, and 4 bytes of 0.
type keptRow [keptRowSize]byte

func keptRowOf(plain []byte) (row keptRow) {
	le := binary.LittleEndian
	le.PutUint32(row[0:], uint32(len(plain)))
	le.PutUint32(row[4:], crc32.Checksum(plain, castagnoli))
	le.PutUint32(row[8:], crc32.ChecksumIEEE(plain))
	return row
}

// has reports whether the table says that a span is there.
func (k *keptSpans) has(index, size int, row *keptRow) bool {
	if k == nil {
		return false
	}
	f := k.file.Load()
	if f == nil {
		return false
	}
	_, err := f.file.ReadAt(row[:], keptTable+int64(index)*keptRowSize)
	return err == nil && int(binary.LittleEndian.Uint32(row[0:])) == size
}

// read reads a span to the front of buf, and reports whether it is what the row says.
// buf is the span's size, aligned.
func (k *keptSpans) read(row *keptRow, buf []byte, index int, out int64, size int) bool {
	_, err := k.file.Load().direct.ReadAt(buf, k.place(index, out))
	return err == nil && keptRowOf(buf[:size]) == *row
}

// write keeps the span at the front of buf; see read.
func (k *keptSpans) write(buf []byte, index int, out int64, size int) {
	if err := k.make(); err != nil {
		k.stop(err)
		return
	}
	if !k.disk.take(int64(len(buf))) {
		return
	}
	f := k.file.Load()
	row := keptRowOf(buf[:size])
	_, err := f.direct.WriteAt(buf, k.place(index, out))
	if err == nil {
		_, err = f.file.WriteAt(row[:], keptTable+int64(index)*keptRowSize)
	}
	if err != nil {
		k.stop(err)
	}
}

// wanted reports whether spans are to be written.
func (k *keptSpans) wanted() bool { return k != nil && !k.off.Load() && !k.disk.full.Load() }

func (k *keptSpans) close() error {
	if k == nil {
		return nil
	}
	f := k.file.Load()
	switch {
	case f == nil:
		return nil
	case f.direct == f.file:
		return f.file.Close()
	}
	return errors.Join(f.direct.Close(), f.file.Close())
}

// take takes room for n bytes; false: there is none. Other processes that keep spans at
// the same time count for themselves, so that the bound can be passed until they end.
func (d *spanDisk) take(n int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left < n {
		if err := d.makeRoom(n); err != nil {
			d.cache.log.Info("decoded content is not kept", "reason", err)
			d.left = 0
		}
	}
	if d.left < n {
		d.full.Store(true)
		return false
	}
	d.left -= n
	return true
}

// makeRoom counts what all images have on disk, and removes what was used longest ago
// and is not in use until n bytes are left. Half of the disk's free space stays free in
// any case. Preconditions: d.mu is held.
func (d *spanDisk) makeRoom(n int64) error {
	type file struct {
		name  string
		bytes int64
		fi    fs.FileInfo
	}
	var files []file
	d.left = d.max
	root := d.cache.dir.FS()
	names, err := fs.Glob(root, "blobs/*/*"+keptExt)
	if err != nil {
		return err
	}
	for _, name := range names {
		fi, err := fs.Stat(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		files = append(files, file{name, onDisk(fi), fi})
		d.left -= onDisk(fi)
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(lastUsed(a.fi).UnixNano(), lastUsed(b.fi).UnixNano()) })
	for _, old := range files {
		if d.left >= n {
			break
		}
		f, err := d.cache.lockFile(old.name)
		if err != nil {
			continue // in use, or gone
		}
		if err := errors.Join(d.cache.dir.Remove(old.name), f.Close()); err != nil {
			return err
		}
		d.left += old.bytes
	}
	free, err := d.cache.freeBytes()
	d.left = min(d.left, free/2)
	return err
}

// freeBytes is the free space of the cache's file system.
func (c *Cache) freeBytes() (int64, error) {
	dir, err := c.dir.Open(".")
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &st), dir.Close()); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: c.dir.Name(), Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // not everywhere of 64 bits
}

// onDisk is what a file takes, in bytes: less than its size where it has holes.
func onDisk(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return min(fi.Size(), st.Blocks*512)
	}
	return fi.Size()
}

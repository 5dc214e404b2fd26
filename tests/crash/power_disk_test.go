package crash

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A disk whose power can be cut at any write is a file that a loop device lies on, in a
// FUSE file system of one of our children. That notes each write and each flush in the
// order in which they come; marks, written to a second file, say between which of them a
// program was told that something is done. What the disk would have had at any moment is
// made of the notes afterwards.

// Names in the file system of a logged disk.
const (
	diskFile = "disk"
	markFile = "mark"
)

// Their node ids.
const (
	diskNode = fuse.FUSE_ROOT_ID + 1 + iota
	markNode
)

// logEntry is one note: of a write, a flush or a mark.
type logEntry struct {
	kind logKind
	off  int64 // of a write; of a mark: its number
	data []byte
}

type logKind uint32

const (
	logWrite logKind = iota
	logFlush         // what was written before it is on the disk for good
	logMark
)

// logHeader is an entry in the log's file; the data follows.
type logHeader struct {
	Kind logKind
	Len  uint32
	Off  int64
}

// loggedDisk serves the file system. Requests come one at a time.
type loggedDisk struct {
	fuse.RawFileSystem
	size int64
	data *os.File // what the disk has
	log  *os.File
}

// serveDisk is main of the child that serves a disk of some kB at dir, until that is
// unmounted. It never uses what lies on the disk, and ends with whoever began it.
func serveDisk(dir, kb, log string) error {
	n, err := strconv.ParseInt(kb, 10, 64)
	if err != nil {
		return err
	}
	d := &loggedDisk{RawFileSystem: fuse.NewDefaultRawFileSystem(), size: n << 10}
	if d.log, err = os.Create(log); err != nil {
		return err
	}
	if d.data, err = os.Create(log + ".data"); err != nil {
		return err
	}
	if err := d.data.Truncate(d.size); err != nil {
		return err
	}
	server, err := fuse.NewServer(d, dir, &fuse.MountOptions{DirectMountStrict: true, SingleThreaded: true, MaxWrite: 1 << 20, FsName: "power"})
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // aborts the connection
	}()
	go func() {
		if server.WaitMount() == nil {
			fmt.Println("ready")
		}
	}()
	server.Serve()
	return errors.Join(d.log.Close(), d.data.Close())
}

func (d *loggedDisk) note(kind logKind, off int64, data []byte) fuse.Status {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, logHeader{kind, uint32(len(data)), off})
	b.Write(data)
	_, err := d.log.Write(b.Bytes())
	return fuse.ToStatus(err)
}

func (d *loggedDisk) attr(node uint64, out *fuse.Attr) fuse.Status {
	out.Ino, out.Nlink, out.Mode = node, 1, unix.S_IFREG|0o600
	switch node {
	case fuse.FUSE_ROOT_ID:
		out.Mode = unix.S_IFDIR | 0o700
	case diskNode:
		out.Size, out.Blocks = uint64(d.size), uint64(d.size)/512
	}
	return fuse.OK
}

func (d *loggedDisk) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch name {
	case diskFile:
		out.NodeId = diskNode
	case markFile:
		out.NodeId = markNode
	default:
		return fuse.ENOENT
	}
	return d.attr(out.NodeId, &out.Attr)
}

func (d *loggedDisk) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return d.attr(in.NodeId, &out.Attr)
}

// SetAttr takes what mkfs asks for, a length, for done.
func (d *loggedDisk) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return d.attr(in.NodeId, &out.Attr)
}

// Open has the kernel keep nothing of the file: each write comes here at once.
func (d *loggedDisk) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (d *loggedDisk) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := d.data.ReadAt(buf[:in.Size], int64(in.Offset))
	if err != nil && err != io.EOF {
		return nil, fuse.ToStatus(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (d *loggedDisk) Writev(_ <-chan struct{}, in *fuse.WriteIn, pieces [][]byte) (uint32, fuse.Status) {
	data := slices.Concat(pieces...)
	if in.NodeId == markNode {
		n, err := strconv.ParseInt(string(data), 10, 64)
		if err != nil {
			return 0, fuse.EINVAL
		}
		return uint32(len(data)), d.note(logMark, n, nil)
	}
	if _, err := d.data.WriteAt(data, int64(in.Offset)); err != nil {
		return 0, fuse.ToStatus(err)
	}
	return uint32(len(data)), d.note(logWrite, int64(in.Offset), data)
}

func (d *loggedDisk) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.NodeId != diskNode {
		return fuse.OK
	}
	return d.note(logFlush, 0, nil)
}

// Fallocate, by which a loop device discards, has to be said to be missing each time:
// the rest of the disk is what was written to it.
func (d *loggedDisk) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status {
	return fuse.ToStatus(unix.EOPNOTSUPP)
}

// readLog reads what a disk has noted.
func readLog(name string) (log []logEntry, err error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for r := bytes.NewReader(data); r.Len() > 0; {
		var h logHeader
		if err := binary.Read(r, binary.LittleEndian, &h); err != nil {
			return nil, err
		}
		at := len(data) - r.Len()
		if r.Len() < int(h.Len) {
			return nil, io.ErrUnexpectedEOF
		}
		log = append(log, logEntry{h.Kind, h.Off, data[at : at+int(h.Len)]})
		if _, err := r.Seek(int64(h.Len), io.SeekCurrent); err != nil {
			return nil, err
		}
	}
	return log, nil
}

// diskBlock is what a disk writes whole or not at all, in bytes.
const diskBlock = 4096

// blocks are what a disk has, by number. What is missing is zero. No block changes, so
// that copies can share them.
type blocks map[int64][]byte

// write writes those blocks of data that keep chooses.
func (b blocks) write(off int64, data []byte, keep func() bool) {
	for len(data) > 0 {
		number, in := off/diskBlock, int(off%diskBlock)
		n := min(diskBlock-in, len(data))
		if keep() {
			whole := data[:n]
			if n < diskBlock {
				whole = make([]byte, diskBlock)
				copy(whole, b[number])
				copy(whole[in:], data[:n])
			}
			b[number] = whole
		}
		off, data = off+int64(n), data[n:]
	}
}

func always() bool { return true }

// store makes a file of a whole disk, in place of another.
func (b blocks) store(name string, size int64) (err error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	zero := make([]byte, diskBlock)
	for number, data := range b {
		if bytes.Equal(data, zero) {
			continue
		}
		if _, err := f.WriteAt(data, number*diskBlock); err != nil {
			return err
		}
	}
	return nil
}

// cut is a moment at which the power goes: before the entry at of the log. Of what was
// written after the last flush, kept is on the disk.
type cut struct {
	at   int
	kept keptWrites
	seed uint64 // of keptRandom
}

type keptWrites string

const (
	keptNone   keptWrites = "none"
	keptAll    keptWrites = "all"
	keptRandom keptWrites = "random ones"
)

// replay makes the disks of cuts, in the order of the log.
type replay struct {
	log  []logEntry
	next int // entries before it are in the disk
	disk blocks
}

// flushed is the entry after the last flush before a cut.
func (r *replay) flushed(c cut) int {
	for i := c.at; i > 0; i-- {
		if r.log[i-1].kind == logFlush {
			return i
		}
	}
	return 0
}

// disk is what is left after a cut; keep chooses among what was not flushed.
func (r *replay) diskAfter(c cut, keep func() bool) blocks {
	if r.disk == nil {
		r.disk = blocks{}
	}
	for ; r.next < r.flushed(c); r.next++ {
		if e := r.log[r.next]; e.kind == logWrite {
			r.disk.write(e.off, e.data, always)
		}
	}
	disk := maps.Clone(r.disk)
	for _, e := range r.log[r.next:c.at] {
		if e.kind == logWrite {
			disk.write(e.off, e.data, keep)
		}
	}
	return disk
}

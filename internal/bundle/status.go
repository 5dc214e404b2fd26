package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// MountStatus describes one live mount.
type MountStatus struct {
	Bundle   string            `json:"bundle"`
	Rootfs   string            `json:"rootfs"` // the mountpoint
	Image    string            `json:"image"`  // LAYOUT:TAG
	Manifest string            `json:"manifest"`
	PID      int               `json:"pid"` // 0: the daemon does not answer
	Uptime   float64           `json:"uptime_seconds"`
	Upper    int64             `json:"upper_bytes"` // disk space of the changes
	Requests map[string]uint64 `json:"requests,omitempty"`
	Resources
	Error string `json:"error,omitempty"` // why the daemon does not answer
}

// Resources are what a daemon holds.
type Resources struct {
	Resident    int64 `json:"resident_bytes,omitempty"` // memory, mapped files included
	Heap        int64 `json:"heap_bytes,omitempty"`     // of it Go's, in use
	Goroutines  int   `json:"goroutines,omitempty"`
	Descriptors int   `json:"descriptors,omitempty"`
}

// resources are the calling process's.
func resources() Resources {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r := Resources{Heap: int64(m.HeapInuse), Goroutines: runtime.NumGoroutine()}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, pages int64
		if _, err := fmt.Sscan(string(data), &size, &pages); err == nil {
			r.Resident = pages * int64(os.Getpagesize())
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		r.Descriptors = len(fds) - 1 // not that of the listing itself
	}
	return r
}

// Status lists the mounts of this mount namespace that the caller can see into.
func Status(ctx context.Context) ([]MountStatus, error) {
	entries, err := ownMounts()
	if err != nil {
		return nil, err
	}
	out := []MountStatus{}
	for _, e := range entries {
		if e.FSType != fsType {
			continue
		}
		d := bundleAt(e.Point)
		if d == nil {
			continue
		}
		if _, err := d.readState(); !errors.Is(err, fs.ErrPermission) { // else it is somebody else's
			out = append(out, d.status(e.Point))
		}
		if err := errors.Join(d.close(), ctx.Err()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d *dir) status(point string) MountStatus {
	st := MountStatus{Bundle: d.path, Rootfs: point}
	state, err := d.readState()
	if err != nil {
		st.Error = err.Error()
		return st
	}
	st.Image, st.Manifest = state.Layout+":"+state.Tag, state.Manifest.Digest.String()
	st.Upper = diskUsage(d.file(upperName))
	ds, conn, err := d.controlCall("status")
	if err != nil {
		st.Error = err.Error()
		return st
	}
	_ = conn.Close()
	st.PID, st.Uptime, st.Requests, st.Resources = ds.PID, time.Since(ds.Started).Seconds(), ds.Requests, ds.Resources
	return st
}

// diskUsage adds up the blocks below a directory, each inode once. What cannot be
// read counts as nothing.
func diskUsage(dir string) int64 {
	var total int64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went away, or is somebody else's
		}
		info, err := e.Info()
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !seen[st.Ino] {
			seen[st.Ino] = st.Nlink > 1
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}

package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// Names in a bundle.
const (
	configName  = "config.json"
	umociName   = "umoci.json"
	rootfsName  = "rootfs"
	upperName   = "upper"
	workName    = "work"
	stateDir    = ".umoci-mount"
	stateName   = "state.json"
	lockName    = "lock"
	mountedName = "mounted"
	enteredName = "entered"
	notesName   = "points"
	controlName = "control"
	logName     = "log"
)

// stateVersion is that of state.json. A bundle of a newer one is refused.
const stateVersion = 1

// State is what the program records of a bundle beside umoci.json: what the mount
// is made of. It is written whole, in one step.
type State struct {
	Version  int              `json:"version"`
	Layout   string           `json:"layout"` // absolute path
	Tag      string           `json:"tag"`
	Manifest ispec.Descriptor `json:"manifest"` // of the mounted base
	Layers   []StateLayer     `json:"layers"`   // of the mounted base, bottom first
	Options  StateOptions     `json:"options"`
}

// StateLayer is one layer of the mounted base.
type StateLayer struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	DiffID    digest.Digest `json:"diff_id"`
}

// StateOptions are the options a mount keeps when it is resumed.
type StateOptions struct {
	CacheDir     string            `json:"cache_dir"`
	KeepDirlinks bool              `json:"keep_dirlinks,omitempty"`
	ReadOnly     bool              `json:"read_only,omitempty"`
	Rootless     bool              `json:"rootless,omitempty"` // the upper stores owners in override_stat
	AllowOther   bool              `json:"allow_other,omitempty"`
	Passthrough  bool              `json:"passthrough,omitempty"`
	IdleSleep    bool              `json:"idle_sleep,omitempty"`
	Volatile     bool              `json:"volatile,omitempty"`
	Debug        bool              `json:"debug,omitempty"`
	IDs          IDs               `json:"ids,omitempty"`
	Squash       bool              `json:"squash,omitempty"` // ids that the maps leave out are shown as the root's
	UIDMap       []overlay.IDRange `json:"uid_map,omitempty"`
	GIDMap       []overlay.IDRange `json:"gid_map,omitempty"`
	SpanCache    int64             `json:"span_cache,omitempty"` // bytes of memory for decoded content
	DiskCache    int64             `json:"disk_cache,omitempty"` // bytes of disk for the same
}

// umociMeta is umoci.json, version 2.
type umociMeta struct {
	Version    string     `json:"umoci_version"`
	From       walkPath   `json:"from_descriptor_path"`
	MapOptions mapOptions `json:"map_options"`
}

type walkPath struct {
	Walk []ispec.Descriptor `json:"descriptor_walk"`
}

type mapOptions struct {
	UIDMappings []idMapping `json:"uid_mappings"`
	GIDMappings []idMapping `json:"gid_mappings"`
	Rootless    bool        `json:"rootless"`
}

// idMapping is runtime-spec's LinuxIDMapping as umoci writes it.
type idMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

const umociVersion = "2"

// dir is an open bundle directory.
type dir struct {
	path string // absolute
	lock *os.File
}

// openDir opens a bundle's directory and locks it for a change. It makes nothing.
// Its path is without symlinks, as mount tables have it.
func openDir(path string) (*dir, error) {
	abs, err := filepath.Abs(path)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	d := &dir{path: abs}
	if d.lock, err = os.OpenFile(d.state(lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", abs, ErrNotBundle)
		}
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", abs, ErrInUse)
		}
		return nil, fmt.Errorf("lock bundle: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.lock.Fd()), &st); err != nil || st.Nlink == 0 {
		_ = d.lock.Close() // a first mount has failed meanwhile, and removed what it made
		return nil, fmt.Errorf("%s: %w", abs, ErrInUse)
	}
	return d, nil
}

func (d *dir) close() error { return d.lock.Close() }

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

func (d *dir) state(name string) string { return filepath.Join(d.path, stateDir, name) }

// readState reads state.json. ErrNotBundle where there is none.
func readState(bundle string) (*State, error) {
	data, err := os.ReadFile(filepath.Join(bundle, stateDir, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", bundle, ErrNotBundle)
	}
	if err != nil {
		return nil, fmt.Errorf("read bundle state: %w", err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(bundle, stateDir, stateName), err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("%s was written by another version of the program (state version %d, read is %d): %w",
			bundle, s.Version, stateVersion, ErrNotBundle)
	}
	return &s, nil
}

func (d *dir) writeState(s *State) error {
	s.Version = stateVersion
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode bundle state: %w", err)
	}
	return replaceFile(d.state(stateName), append(data, '\n'), 0o600)
}

// readUmoci reads umoci.json, ours or stock umoci's.
func readUmoci(bundle string) (*umociMeta, error) {
	data, err := os.ReadFile(filepath.Join(bundle, umociName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s: %w", bundle, umociName, ErrNotBundle)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", umociName, err)
	}
	var m umociMeta
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read %s in %s: %w", umociName, bundle, err)
	}
	if m.Version != umociVersion {
		return nil, fmt.Errorf("%s in %s has version %q, read is %q: %w", umociName, bundle, m.Version, umociVersion, ErrNotBundle)
	}
	if len(m.From.Walk) == 0 {
		return nil, fmt.Errorf("%s in %s names no image: %w", umociName, bundle, ErrNotBundle)
	}
	return &m, nil
}

// writeUmoci writes umoci.json as umoci does: one line, as its decoder and its
// encoder agree on it.
func writeUmoci(bundle string, m *umociMeta) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(bundle, umociName), data, 0o644)
}

func (m *umociMeta) encode() ([]byte, error) {
	m.Version = umociVersion
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", umociName, err)
	}
	return append(data, '\n'), nil
}

// replaceFile writes a file in one durable step.
func replaceFile(name string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err == nil {
		if err = f.Chmod(mode); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// killedEnd is how long a killed daemon may take to let go of its files.
const killedEnd = 5 * time.Second

// isServed is isMounted, but waits for the end of a daemon that was killed and does
// not answer any more.
func isServed(bundle string) (bool, error) {
	deadline := time.Now().Add(killedEnd)
	for {
		mounted, err := isMounted(bundle)
		if err != nil || !mounted {
			return false, err
		}
		if _, conn, err := controlCall(bundle, "status"); err == nil {
			return true, conn.Close()
		}
		if time.Now().After(deadline) {
			return true, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// isMounted reports whether the bundle's daemon runs.
func isMounted(bundle string) (bool, error) {
	f, err := os.Open(filepath.Join(bundle, stateDir, mountedName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the mount: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

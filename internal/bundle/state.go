package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// stateMode lets a user read what root has written, whom his directory lets in.
const stateMode = 0o644

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

	writer *uint32 // who wrote it, where that is another user; see judge
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

// hasState reports whether there is a state.json, good or not.
func (d *dir) hasState() bool { return !d.inner.none() && d.inner.exists(stateName) }

// readState reads state.json. ErrNotBundle where there is none.
func (d *dir) readState() (*State, error) {
	if !d.hasState() {
		return nil, d.notBundle()
	}
	data, owner, err := d.inner.read(stateName)
	if err != nil {
		return nil, fmt.Errorf("read bundle state: %w", err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("read %s: %w", d.inner.shown(stateName), err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("%s was written by another version of the program (state version %d, read is %d): %w",
			d.path, s.Version, stateVersion, ErrNotBundle)
	}
	s.Layout, s.Options.CacheDir = cas.ParsePathText(s.Layout), cas.ParsePathText(s.Options.CacheDir)
	return &s, s.judge(owner)
}

// judge sees to it that a state that neither the caller nor root wrote leads the caller
// to no place of its writer's choice: what the caller may read and write may be more. The
// cache is the caller's own in any case: a user has none of what is root's.
func (s *State) judge(owner uint32) (err error) {
	if owner == uint32(os.Geteuid()) {
		return nil
	}
	if owner != 0 {
		s.writer = &owner
	}
	s.Options.CacheDir, err = CacheDir("")
	return err
}

// openLayout opens the layout at path or, where that is "", the one that the state names.
// With a path the state may be nil.
func (s *State) openLayout(path string) (*cas.Layout, error) {
	if path != "" {
		return cas.Open(path)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.Layout, &st); err == nil && s.writer != nil && st.Uid != *s.writer {
		return nil, fmt.Errorf("the bundle is user %d's, the layout %s is user %d's: name the image to take it from there: %w",
			*s.writer, s.Layout, st.Uid, fs.ErrPermission)
	}
	l, err := cas.Open(s.Layout)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, cas.ErrNotLayout) {
		err = fmt.Errorf("%w (where it was moved, mount --image LAYOUT:%s BUNDLE names its new place)", err, s.Tag)
	}
	return l, err
}

func (d *dir) writeState(s *State) error {
	s.Version = stateVersion
	text := *s
	text.Layout, text.Options.CacheDir = cas.PathText(s.Layout), cas.PathText(s.Options.CacheDir)
	data, err := json.MarshalIndent(&text, "", "  ")
	if err != nil {
		return fmt.Errorf("encode bundle state: %w", err)
	}
	return d.inner.replace(stateName, append(data, '\n'), stateMode)
}

// readUmoci reads umoci.json, ours or stock umoci's.
func (d *dir) readUmoci() (*umociMeta, error) {
	data, _, err := d.top.read(umociName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s: %w", d.path, umociName, ErrNotBundle)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", umociName, err)
	}
	var m umociMeta
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read %s in %s: %w", umociName, d.path, err)
	}
	if m.Version != umociVersion {
		return nil, fmt.Errorf("%s in %s has version %q, read is %q: %w", umociName, d.path, m.Version, umociVersion, ErrNotBundle)
	}
	if len(m.From.Walk) == 0 {
		return nil, fmt.Errorf("%s in %s names no image: %w", umociName, d.path, ErrNotBundle)
	}
	return &m, nil
}

// writeUmoci writes umoci.json as umoci does: one line, as its decoder and its
// encoder agree on it.
func (d *dir) writeUmoci(m *umociMeta) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	return d.top.replace(umociName, data, 0o644)
}

func (m *umociMeta) encode() ([]byte, error) {
	m.Version = umociVersion
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", umociName, err)
	}
	return append(data, '\n'), nil
}

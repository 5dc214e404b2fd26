package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// cacheVersion changes with what a step's result is made of.
const cacheVersion = "umoci-mount build 1"

// stepKey is what a step's result depends on. Its digest is the cache's key.
type stepKey struct {
	Version  string `json:"version"`
	Base     string `json:"base,omitempty"`  // of the first step: digest of the base's manifest, or Empty
	Epoch    string `json:"epoch,omitempty"` // SOURCE_DATE_EPOCH
	Previous string `json:"previous,omitempty"`
	Kind     string `json:"kind"`
	Text     string `json:"text"`
	Env      string `json:"env,omitempty"`    // of run and install: the target's own variables
	Inputs   string `json:"inputs,omitempty"` // digest of what it reads
	Compress string `json:"compress"`
}

func (k *stepKey) digest() string {
	data, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings can be encoded
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// differs says what is not as in the step's last result; "" where all is.
func (k *stepKey) differs(was *stepKey) string {
	switch {
	case k.Version != was.Version:
		return "of another version"
	case k.Epoch != was.Epoch:
		return "SOURCE_DATE_EPOCH changed"
	case k.Base != was.Base:
		return "the base changed"
	case k.Kind != was.Kind || k.Text != was.Text:
		return "its text changed"
	case k.Env != was.Env:
		return "env changed"
	case k.Inputs != was.Inputs:
		return "its files changed"
	case k.Previous != was.Previous:
		return "the step before changed"
	case k.Compress != was.Compress:
		return "the number of steps changed"
	}
	return ""
}

// fileState is what tells that a file was not written to since it was hashed.
type fileState struct {
	Dev, Ino uint64
	Size     int64
	Mtime    int64 // ns
	Ctime    int64 // ns
}

// fileSums remembers digests of files between builds, in the user's cache.
type fileSums struct {
	path   string
	now    time.Time
	layout string // its path without symlinks, which no step reads; "": there is none yet

	mu   sync.Mutex
	have map[string]fileSum // protected by mu; by path
	used map[string]fileSum // protected by mu; what this build asked for
}

type fileSum struct {
	State fileState `json:"state"`
	Sum   string    `json:"sum"`
}

// maxFileSums bounds what is remembered.
const maxFileSums = 20000

// openFileSums reads what earlier builds knew. A file that cannot be read knows nothing.
func openFileSums(path string, now time.Time) *fileSums {
	s := &fileSums{path: path, now: now, have: map[string]fileSum{}, used: map[string]fileSum{}}
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &s.have) != nil {
		s.have = map[string]fileSum{}
	}
	return s
}

func (s *fileSums) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := false
	for name, sum := range s.used {
		fresh = fresh || s.have[name] != sum
	}
	if !fresh {
		return nil
	}
	if len(s.have)+len(s.used) > maxFileSums {
		s.have = map[string]fileSum{}
	}
	for name, sum := range s.used {
		s.have[name] = sum
	}
	data, err := json.Marshal(s.have)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	return writeFile(s.path, data)
}

// sum is the digest of a regular file. What was changed a moment ago may change again
// without a trace in its times, and is not remembered.
func (s *fileSums) sum(name string, info fs.FileInfo) (string, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return hashFile(name)
	}
	state := fileState{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
	s.mu.Lock()
	known, have := s.have[name]
	s.mu.Unlock()
	if !have || known.State != state {
		sum, err := hashFile(name)
		if err != nil {
			return "", err
		}
		known = fileSum{state, sum}
	}
	if s.now.UnixNano()-state.Ctime > int64(2*time.Second) {
		s.mu.Lock()
		s.used[name] = known
		s.mu.Unlock()
	}
	return known.Sum, nil
}

func hashFile(name string) (sum string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// inputs is the digest of what a step reads of the host, and of the images that it
// copies from, whose manifests are given by name. Times do not count, and owners where
// they are not kept.
func (s *fileSums) inputs(k *task, st *step, manifests map[string]string) (string, error) {
	h := sha256.New()
	n := 0
	for _, c := range st.copies {
		n++
		if c.From.Value != "" {
			fmt.Fprintf(h, "image %s\n", manifests[c.From.Value])
			continue
		}
		if err := s.tree(h, c.Source, c.Owner == "keep"); err != nil {
			return "", at(c.Pos, fmt.Errorf("copy: %w", err))
		}
	}
	files := make([]string, 0, len(st.sources)+1)
	for _, src := range st.sources {
		files = append(files, src.path)
	}
	if st.script != "" {
		files = append(files, st.script)
	}
	for _, name := range files {
		n++
		if err := s.tree(h, name, false); err != nil {
			return "", at(st.pos, fmt.Errorf("%s: %w", st.kind, err))
		}
	}
	if n == 0 {
		return "", nil
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// tree adds a file, or a directory with all below it.
func (s *fileSums) tree(h hash.Hash, name string, owners bool) error {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	return filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == s.layout {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %s", strings.TrimPrefix(p, real), info.Mode())
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if owners {
				fmt.Fprintf(h, " %d:%d", st.Uid, st.Gid)
			}
			if info.Mode()&fs.ModeDevice != 0 {
				fmt.Fprintf(h, " device %d", st.Rdev)
			}
		}
		switch info.Mode().Type() {
		case 0:
			sum, err := s.sum(p, info)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, " %s", sum)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, " -> %q", target)
		}
		_, err = h.Write([]byte("\n"))
		return err
	})
}

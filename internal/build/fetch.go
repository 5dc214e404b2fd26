package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"
)

// fetcher gets files by URL, and keeps them: DIR/SHA256 with the content, and
// DIR/SHA256-OF-URL.json about where it came from.
type fetcher struct {
	dir    string
	client *http.Client
}

// fetched is what is known of a URL.
type fetched struct {
	URL          string `json:"url"`
	SHA256       string `json:"sha256"` // of the content, in hex
	Name         string `json:"name"`   // last component of the URL's path
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

// How long a server may take to answer, and how long a file that no build needed any
// more is kept.
const (
	fetchAnswer = 30 * time.Second
	fetchKeep   = 30 * 24 * time.Hour
)

func newFetcher(dir string) *fetcher {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: fetchAnswer, TLSHandshakeTimeout: fetchAnswer}
	return &fetcher{dir: dir, client: &http.Client{Transport: t}}
}

// get makes a source a file of the host. A server is asked each time, unless the
// source says which digest it has, and sends what is not here yet.
func (f *fetcher) get(ctx context.Context, s *source) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	key := sha256.Sum256([]byte(s.url))
	about := filepath.Join(f.dir, hex.EncodeToString(key[:])+".json")
	var have fetched
	if data, err := os.ReadFile(about); err == nil && json.Unmarshal(data, &have) != nil || !f.has(have.SHA256) {
		have = fetched{}
	}
	if have.SHA256 == "" || have.SHA256 != s.sum {
		now, err := f.request(ctx, s, have)
		if err != nil {
			return err
		}
		if s.sum != "" && now.SHA256 != s.sum {
			return fmt.Errorf("%s has the sha256 %s, not %s: %w", s.url, now.SHA256, s.sum, ErrSpec)
		}
		if have != *now {
			data, err := json.Marshal(now)
			if err == nil {
				err = writeFile(about, data)
			}
			if err != nil {
				return err
			}
		}
		have = *now
	}
	s.path = f.file(have.SHA256)
	stamp := time.Now()
	return os.Chtimes(s.path, stamp, stamp) // see prune
}

func (f *fetcher) file(sum string) string { return filepath.Join(f.dir, sum) }

func (f *fetcher) has(sum string) bool {
	if sum == "" {
		return false
	}
	_, err := os.Stat(f.file(sum))
	return err == nil
}

// request asks the server; have is what is here already.
func (f *fetcher) request(ctx context.Context, s *source, have fetched) (_ *fetched, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "umoci-mount")
	if have.ETag != "" {
		req.Header.Set("If-None-Match", have.ETag)
	}
	if have.LastModified != "" {
		req.Header.Set("If-Modified-Since", have.LastModified)
	}
	res, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	switch res.StatusCode {
	case http.StatusNotModified:
		return &have, nil
	case http.StatusOK:
	default:
		return nil, fmt.Errorf("get %s: the server says %s: %w", s.url, res.Status, ErrSpec)
	}
	sum, err := f.store(res.Body)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", s.url, err)
	}
	return &fetched{
		URL: s.url, SHA256: sum, Name: path.Base(req.URL.Path),
		ETag: res.Header.Get("ETag"), LastModified: res.Header.Get("Last-Modified"),
	}, nil
}

// store writes content under its digest.
func (f *fetcher) store(in io.Reader) (sum string, err error) {
	t, err := os.CreateTemp(f.dir, ".new-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(t.Name()))
		}
	}()
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(t, h), in)
	if err = errors.Join(err, t.Close()); err != nil {
		return "", err
	}
	sum = hex.EncodeToString(h.Sum(nil))
	return sum, os.Rename(t.Name(), f.file(sum))
}

// prune removes what no build has needed for long.
func (f *fetcher) prune(now time.Time) error {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && now.Sub(info.ModTime()) > fetchKeep {
			err = os.Remove(filepath.Join(f.dir, e.Name()))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeFile replaces a file in one step.
func writeFile(name string, data []byte) (err error) {
	t, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(t.Name()))
		}
	}()
	_, err = t.Write(data)
	if err == nil {
		err = t.Chmod(0o644)
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return err
	}
	return os.Rename(t.Name(), name)
}

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
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// fetcher gets files by URL, and keeps them: DIR/SHA256 with the content, and
// DIR/SHA256-OF-URL.json about where it came from. What does not have the content that
// its name says is removed and got again.
type fetcher struct {
	dir    string
	client *http.Client
	log    *slog.Logger
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

func newFetcher(dir string, log *slog.Logger) *fetcher {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: fetchAnswer, TLSHandshakeTimeout: fetchAnswer}
	return &fetcher{dir: dir, client: &http.Client{Transport: t}, log: log}
}

// get makes a source a file of the host. A server is asked each time, unless the
// source says which digest it has, and sends what is not here, whole.
func (f *fetcher) get(ctx context.Context, s *source) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	key := sha256.Sum256([]byte(s.url))
	about := filepath.Join(f.dir, hex.EncodeToString(key[:])+".json")
	have, err := f.known(about, s.url)
	if err != nil {
		return err
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
				return fmt.Errorf("keep what is known of %s: %w", s.url, err)
			}
		}
		have = *now
	}
	s.path = f.file(have.SHA256)
	stamp := time.Now()
	return os.Chtimes(s.path, stamp, stamp) // see prune
}

func (f *fetcher) file(sum string) string { return filepath.Join(f.dir, sum) }

// known is what is here of a URL, whole; the zero value where nothing is.
func (f *fetcher) known(about, url string) (fetched, error) {
	var have fetched
	data, err := os.ReadFile(about)
	if err != nil || json.Unmarshal(data, &have) != nil || have.URL != url || !isSHA256(have.SHA256) {
		return fetched{}, nil
	}
	name := f.file(have.SHA256)
	sum, err := hashFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fetched{}, nil
	case err == nil && sum == have.SHA256:
		return have, nil
	case err == nil:
		err = fmt.Errorf("it has the sha256 %s", sum)
	}
	f.log.Warn("a download is damaged, and is got again", "url", url, "file", name, "reason", err)
	if err := os.Remove(name); err != nil {
		return fetched{}, fmt.Errorf("remove a damaged download: %w", err)
	}
	return fetched{}, nil
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
	case http.StatusOK:
	case http.StatusNotModified:
		if have.SHA256 != "" {
			return &have, nil
		}
		fallthrough // it was asked for all
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
	err = writeNew(f.dir, func(t *os.File) (name string, err error) {
		h := sha256.New()
		_, err = io.Copy(io.MultiWriter(t, h), in)
		sum = hex.EncodeToString(h.Sum(nil))
		return sum, err
	})
	return sum, err
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

// writeFile replaces a file in one durable step.
func writeFile(name string, data []byte) error {
	return writeNew(filepath.Dir(name), func(t *os.File) (string, error) {
		_, err := t.Write(data)
		if err == nil {
			err = t.Chmod(0o644)
		}
		return filepath.Base(name), err
	})
}

// writeNew puts what write writes under the name in dir that it gives, in place of what
// has it, in one durable step.
func writeNew(dir string, write func(*os.File) (name string, err error)) (err error) {
	t, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if rerr := os.Remove(t.Name()); !errors.Is(rerr, fs.ErrNotExist) { // it has its name already
			err = errors.Join(err, rerr)
		}
	}()
	name, err := write(t)
	if err == nil {
		err = t.Sync()
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return err
	}
	if err = os.Rename(t.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // a file system whose directories cannot be synced
	}
	return errors.Join(err, d.Close())
}

package build

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const content = "what the server has"

// answers counts those of a server.
type answers struct{ whole, unchanged atomic.Int64 }

// served is the URL of content.
func served(t *testing.T) (url string, count *answers) {
	t.Helper()
	count = &answers{}
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("ETag", `"tag"`)
		if r.Header.Get("If-None-Match") == `"tag"` || r.URL.Path == "/never" {
			count.unchanged.Add(1)
			out.WriteHeader(http.StatusNotModified)
			return
		}
		count.whole.Add(1)
		_, _ = io.WriteString(out, content)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/file", count
}

func TestADamagedDownloadIsGotAgain(t *testing.T) {
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	damages := map[string]func(name string) error{
		"changed":         func(name string) error { return os.WriteFile(name, []byte("What the server has"), 0o600) },
		"empty":           func(name string) error { return os.Truncate(name, 0) },
		"cut":             func(name string) error { return os.Truncate(name, 5) },
		"gone":            os.Remove,
		"a directory":     func(name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o700)) },
		"known by half":   func(name string) error { return damageAbout(name, `"`, "") },
		"known as a path": func(name string) error { return damageAbout(name, sum, "../outside") },
		"of another URL":  func(name string) error { return damageAbout(name, "/file", "/other") },
	}
	for _, pin := range []string{"", sum} {
		for name, damage := range damages {
			t.Run(fmt.Sprintf("%s, pinned %t", name, pin != ""), func(t *testing.T) {
				url, count := served(t)
				top := t.TempDir()
				f := newFetcher(filepath.Join(top, "downloads"), slog.New(slog.DiscardHandler))
				s := source{url: url, sum: pin}
				get := func() {
					t.Helper()
					if err := f.get(t.Context(), &s); err != nil {
						t.Fatal(err)
					}
					if data, err := os.ReadFile(s.path); err != nil || string(data) != content || s.path != f.file(sum) {
						t.Errorf("%s has %q, %v", s.path, data, err)
					}
				}
				get()
				get()
				unchanged := int64(1)
				if pin != "" { // the server is not asked
					unchanged = 0
				}
				if w, u := count.whole.Load(), count.unchanged.Load(); w != 1 || u != unchanged {
					t.Errorf("before the damage the server sent it %d times, and %d times that it is unchanged", w, u)
				}
				outside := filepath.Join(top, "outside")
				if err := errors.Join(os.WriteFile(outside, nil, 0o600), damage(s.path)); err != nil {
					t.Fatal(err)
				}
				get()
				get()
				if n := count.whole.Load(); n != 2 {
					t.Errorf("the server sent it %d times", n)
				}
				if _, err := os.Lstat(outside); err != nil {
					t.Error(err)
				}
				if err := f.prune(time.Now()); err != nil {
					t.Error(err)
				}
				if list, err := os.ReadDir(f.dir); err != nil || len(list) != 2 {
					t.Errorf("kept are %v, %v", list, err)
				}
			})
		}
	}
}

// damageAbout changes what is known of the one download, beside a file.
func damageAbout(name, old, now string) error {
	list, err := filepath.Glob(filepath.Join(filepath.Dir(name), "*.json"))
	if err != nil || len(list) != 1 {
		return fmt.Errorf("found %v: %w", list, errors.Join(err, os.ErrNotExist))
	}
	data, err := os.ReadFile(list[0])
	if err != nil {
		return err
	}
	return os.WriteFile(list[0], []byte(strings.ReplaceAll(string(data), old, now)), 0o600)
}

func TestADownloadOfAnotherDigestIsRefusedAndAnAnswerWithoutOneToo(t *testing.T) {
	url, _ := served(t)
	f := newFetcher(t.TempDir(), slog.New(slog.DiscardHandler))
	other := fmt.Sprintf("%x", sha256.Sum256(nil))
	for range 2 {
		if err := f.get(t.Context(), &source{url: url, sum: other}); !errors.Is(err, ErrSpec) {
			t.Errorf("another digest: %v", err)
		}
		if err := f.get(t.Context(), &source{url: url[:len(url)-len("file")] + "never"}); !errors.Is(err, ErrSpec) {
			t.Errorf("nothing: %v", err)
		}
	}
}

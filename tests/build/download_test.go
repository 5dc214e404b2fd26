package build

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// download is a world whose spec adds an archive that a server has, and the file in
// which a build keeps that.
func download(t *testing.T) (w *world, kept func() string) {
	t.Helper()
	imagetest.NeedRoot(t)
	archive := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "file"})
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("ETag", `"tag"`)
		http.ServeContent(out, r, "a.tar", time.Time{}, bytes.NewReader([]byte(archive)))
	}))
	t.Cleanup(server.Close)
	w = newWorld(t, map[string]string{"spec.yaml": "a: {base: empty, expand: " + server.URL + "/a.tar}\n"})
	w.env = []string{"UMOCI_MOUNT_CACHE=" + w.path("cache")}
	return w, func() string {
		t.Helper()
		list, err := filepath.Glob(w.path("cache/build/downloads/" + strings.Repeat("?", 64)))
		if err != nil || len(list) != 1 {
			t.Fatalf("downloads: %v, %v", list, err)
		}
		return list[0]
	}
}

func TestADamagedDownloadDoesNotReachTheImage(t *testing.T) {
	t.Parallel()
	w, kept := download(t)
	w.must("build", "spec.yaml")
	whole := fileContent(t, kept())
	for name, damaged := range map[string]string{
		"changed": strings.Replace(whole, "content of file", "content of fire", 1), "empty": "",
	} {
		if damaged == whole {
			t.Fatal("nothing is damaged")
		}
		if err := os.WriteFile(kept(), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		r := w.run("build", "--no-cache", "spec.yaml")
		if r.Code != 0 {
			t.Fatalf("%s: exit %d\n%s", name, r.Code, r.Stderr)
		}
		contains(t, name, r.Stderr, "damaged", kept())
		expect(t, name, "content of file", w.must("cat", "--image", "oci:a", "/file"))
		expect(t, name, whole, fileContent(t, kept()))
	}
}

func TestADownloadIsOnTheDiskBeforeItHasItsName(t *testing.T) {
	t.Parallel()
	imagetest.NeedTools(t, "strace")
	w, kept := download(t)
	w.sh("strace -f -y -qq -s 4096 -e trace=fsync,rename,renameat,renameat2 -o trace " + env.Bin + " build spec.yaml")
	trace := fileContent(t, w.path("trace"))
	dir := regexp.QuoteMeta(filepath.Dir(kept()))
	for _, name := range []string{regexp.QuoteMeta(filepath.Base(kept())), `[0-9a-f]{64}\.json`} {
		renamed := regexp.MustCompile(fmt.Sprintf(`"%s/(\.new-\d+)", .*"%s/%s"`, dir, dir, name)).FindStringSubmatchIndex(trace)
		if renamed == nil {
			t.Errorf("nothing is renamed to %s:\n%s", name, trace)
			continue
		}
		before, after := trace[:renamed[0]], trace[renamed[1]:]
		if temp := trace[renamed[2]:renamed[3]]; !regexp.MustCompile(fmt.Sprintf(`fsync\(\d+<%s/%s>`, dir, temp)).MatchString(before) {
			t.Errorf("%s is not synced before it is renamed:\n%s", temp, trace)
		}
		if !regexp.MustCompile(fmt.Sprintf(`fsync\(\d+<%s>`, dir)).MatchString(after) {
			t.Errorf("the directory is not synced after %s is renamed:\n%s", name, trace)
		}
	}
}

package fusefs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// listProgram lists directories with what a 32-bit program has, which fails where a
// number or an offset is longer (EOVERFLOW).
const listProgram = `
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		DIR *d = opendir(argv[i]);
		struct dirent *e;
		struct stat st;
		if (!d || chdir(argv[i])) { perror(argv[i]); return 1; }
		for (errno = 0; (e = readdir(d)); errno = 0) {
			if (lstat(e->d_name, &st)) { perror(e->d_name); return 1; }
			if (e->d_name[0] != '.') puts(e->d_name);
		}
		if (errno) { perror("readdir"); return 1; }
		closedir(d);
	}
	return 0;
}`

func TestA32BitProgramListsWhatWasMade(t *testing.T) {
	dir := t.TempDir()
	source, program := filepath.Join(dir, "list.c"), filepath.Join(dir, "list")
	if err := os.WriteFile(source, []byte(listProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-m32", "-o", program, source).CombinedOutput(); err != nil {
		t.Skipf("no compiler of 32-bit programs: %v\n%s", err, out)
	}
	m := mount(t, rootOptions(false))
	made := filepath.Join(m.root, "made")
	for _, p := range []string{made, filepath.Join(made, "sub")} {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{filepath.Join(made, "file"), filepath.Join(m.root, "dir/made-file")} {
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(program, m.root, made, filepath.Join(m.root, "dir")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"made", "sub", "file", "made-file"} {
		if !strings.Contains("\n"+string(out), "\n"+name+"\n") {
			t.Errorf("%q is not listed:\n%s", name, out)
		}
	}
}

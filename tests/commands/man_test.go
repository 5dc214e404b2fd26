package commands

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// commandLine is a line of help that names a command and its aliases.
var commandLine = regexp.MustCompile(`(?m)^ {3,}([a-z][a-z-]*(?:, [a-z][a-z-]*)*)  +\S`)

// Each command and alias that help shows has a page, which man(1) sets without a
// complaint and which names each flag that --help names.
func TestEachCommandHasAManualPage(t *testing.T) {
	imagetest.NeedTools(t, "man", "groff")
	dir := t.TempDir()
	env.MustCommand(t, "go", "run", "-tags", "man", "../../cmd/umoci-mount", dir)
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, parent := range []string{"", "raw", "cache"} {
		args := strings.Fields(parent + " --help")
		for _, m := range commandLine.FindAllStringSubmatch(env.Must(t, args...), -1) {
			for _, name := range strings.Split(m[1], ", ") {
				if name == "help" || name == "h" || name == "completion" {
					continue
				}
				words := strings.Fields(parent + " " + name)
				page, err := os.ReadFile(filepath.Join(dir, "umoci-mount-"+strings.Join(words, "-")+".1"))
				if err != nil {
					t.Error(err)
					continue
				}
				if strings.HasPrefix(string(page), ".so man1/") {
					continue
				}
				text := strings.ReplaceAll(string(page), `\-`, "-")
				for _, flag := range regexp.MustCompile(`(?m)^\s+(?:-., )?(--[a-z._-]+)`).FindAllStringSubmatch(env.Must(t, append(words, "--help")...), -1) {
					if !strings.Contains(text, flag[1]) {
						t.Errorf("%s: the page does not name %s", strings.Join(words, " "), flag[1])
					}
				}
			}
		}
	}
	for _, page := range pages {
		r := env.Command(t, []string{"MANROFFSEQ=", "LC_ALL=C"}, "man", "--warnings", "-l", page)
		if data, err := os.ReadFile(page); err == nil && strings.HasPrefix(string(data), ".so ") {
			continue // found in the path where pages are installed
		}
		if r.Code != 0 || strings.TrimSpace(r.Stderr) != "" || !strings.Contains(r.Stdout, "NAME") {
			t.Errorf("%s: exit %d: %.300s", page, r.Code, r.Stderr)
		}
	}
}

// Behind BUNDLE all is the program's, so the usage must not show flags there.
func TestTheUsageOfExecHasItsOptionsFirst(t *testing.T) {
	for _, command := range []string{"exec", "shell"} {
		want := "umoci-mount " + command + " [OPTION]... BUNDLE"
		if out := env.Must(t, command, "--help"); !strings.Contains(out, want) || strings.Contains(out, "[flags]") {
			t.Errorf("%s: %s", command, out)
		}
	}
}

// make install writes completions for both of the program's names.
func TestCompletionsAreForTheNameThatTheProgramHas(t *testing.T) {
	for shell, last := range map[string]string{"bash": "-F __start_NAME NAME", "zsh": "compdef _NAME NAME", "fish": "complete -c NAME "} {
		for _, name := range []string{"umoci-mount", "umoci"} {
			out := mustSh(t, t.TempDir(), "ln -s $um "+name+"; ./"+name+" completion "+shell)
			if !strings.Contains(out, strings.ReplaceAll(last, "NAME", name)) {
				t.Errorf("%s completion %s: %.200s", name, shell, out)
			}
		}
	}
}

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestLongFlagsTakeOneDashAsUmocisDo(t *testing.T) {
	for args, want := range map[string]string{
		"stat -image a:b -json":                    "stat --image a:b --json",
		"stat -image=a:b":                          "stat --image=a:b",
		"-log info stat --image a:b":               "--log info stat --image a:b",
		"config --image a --config.cmd -image":     "config --image a --config.cmd -image",
		"config -image a -config.cmd -c":           "config --image a --config.cmd -c",
		"config --config.cmd=-x -config.cmd=-json": "config --config.cmd=-x --config.cmd=-json",
		"insert --image a -- -opaque /x":           "insert --image a -- -opaque /x",
		"raw config -image a -rootfs r c.json":     "raw config --image a --rootfs r c.json",
		"raw mtree-validate -f x -p y -K a,b":      "raw mtree-validate -f x -p y -K a,b",
		"diff -l b":                                "diff -l b",
		"-v":                                       "-v",
		"stat -h":                                  "stat -h",
		"stat -":                                   "stat -",
		"stat -nosuch":                             "stat -nosuch",
		"nosuch -image a":                          "nosuch -image a",
	} {
		got := longFlags(newRootCommand("umoci"), strings.Fields(args))
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

func TestHelpTextsHaveTheFormThatScriptsLookFor(t *testing.T) {
	for args, want := range map[string]string{
		"--help":                 "umoci - umoci modifies Open Container images",
		"help":                   "umoci - umoci modifies Open Container images",
		"h":                      "umoci - umoci modifies Open Container images",
		"config --help":          "umoci config - ",
		"help config":            "umoci config - ",
		"unpack -h":              "umoci unpack - ",
		"create --help":          "umoci new - ",
		"raw config --help":      "umoci raw runtime-config - ",
		"help raw add-layer":     "umoci raw add-layer - ",
		"raw mtree-validate -h":  "umoci raw mtree-validate - ",
		"config --image x -help": "umoci config - ",
	} {
		var out strings.Builder
		root := newRootCommand("umoci")
		root.SetOut(&out)
		root.SetArgs(longFlags(root, strings.Fields(args)))
		if err := root.Execute(); err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		lines := strings.Split(out.String(), "\n")
		if lines[0] != "NAME:" || !strings.HasPrefix(lines[1], "   "+want) {
			t.Errorf("%s:\n%s", args, out.String())
		}
	}
}

func TestEveryCommandIsInTheHelpText(t *testing.T) {
	var out strings.Builder
	root := newRootCommand("umoci-mount")
	root.SetOut(&out)
	root.SetArgs([]string{"help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range root.Commands() {
		if !cmd.Hidden && !strings.Contains(out.String(), "  "+cmd.Name()) {
			t.Errorf("no %s in\n%s", cmd.Name(), out.String())
		}
	}
	if strings.Contains(out.String(), "cpu-profile") {
		t.Error("a hidden flag is shown")
	}
	root.SetArgs([]string{"help", "nosuch"})
	if err := root.Execute(); exitCode(err) != exitUsage {
		t.Errorf("help nosuch: %v", err)
	}
}

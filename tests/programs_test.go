package tests

import (
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// programs are the scripts of testdata/programs, in their order.
var programs = []string{"sqlite", "postgresql", "git", "npm", "copies", "build", "rpm", "privileges"}

// Programs that ask much of a file system do their work in a container and check it
// themselves: with passthrough and without, and once more in the image that is made of
// what they left.
func TestRealProgramsUnderRunc(t *testing.T) {
	layout := realLayout(t)
	imagetest.NeedTools(t, "runc", "git")
	scripts, err := filepath.Abs("testdata/programs")
	if err != nil {
		t.Fatal(err)
	}
	binds := map[string]string{"/etc/resolv.conf": "/etc/resolv.conf", "/mnt/project": makeProject(t), "/mnt/programs": scripts}
	run := func(t *testing.T, b *imagetest.Bundle, name string) {
		t.Helper()
		c := &container{runtime: "runc", bundle: b.Path, wide: true, binds: binds}
		c.run(t, ". /mnt/programs/"+name+".sh")
	}
	b := env.Mount(t, layout+":compiler")
	run(t, b, "install")
	env.Must(t, "repack", "--image", layout+":programs", b.Path)
	b.Umount(t)
	for mode, flags := range map[string][]string{"passthrough": {"--passthrough"}, "without passthrough": nil} {
		t.Run(mode, func(t *testing.T) {
			b := env.Mount(t, layout+":programs", flags...)
			for _, name := range programs {
				t.Run(name, func(t *testing.T) { run(t, b, name) })
			}
			if t.Failed() {
				return
			}
			b.Umount(t)
			b.Remount(t, flags...)
			env.Must(t, "repack", "--image", layout+":after", b.Path)
			b.Umount(t)
			b = env.Mount(t, layout+":after", flags...)
			for _, name := range []string{"after", "privileges"} {
				t.Run(name+" the repack", func(t *testing.T) { run(t, b, name) })
			}
			b.Umount(t)
		})
	}
}

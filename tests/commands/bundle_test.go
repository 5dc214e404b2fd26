package commands

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestWhoHoldsAMountIsNamedAndNobodyElse(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	b := env.Mount(t, filepath.Join(dir, "img:a"))
	sleep := exec.Command("sleep", "60")
	sleep.Dir = b.Rootfs()
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	r := env.Run(t, "umount", b.Path)
	want := fmt.Sprintf("umoci-mount: %s is busy: held by %d sleep (cwd)\n", b.Rootfs(), sleep.Process.Pid)
	if r.Code != imagetest.CodeBusy || r.Stderr != want {
		t.Errorf("exit %d: %q, want %q", r.Code, r.Stderr, want)
	}
	if err := sleep.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = sleep.Wait()
	b.Umount(t)
}

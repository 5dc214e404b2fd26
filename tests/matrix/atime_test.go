package matrix

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestAReadOnlyMountLeavesAccessTimes(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: callsText}}})
	for mode, flags := range map[string][]string{"passthrough": {"--passthrough"}, "without passthrough": nil} {
		t.Run(mode, func(t *testing.T) {
			b := env.Mount(t, layout+":base", flags...)
			long := time.Unix(978307200, 0)
			names := []string{"d", "d/g", "d/new"}
			if err := os.WriteFile(filepath.Join(b.Rootfs(), "d/new"), []byte("new"), 0o644); err != nil {
				t.Fatal(err)
			}
			for i, name := range names {
				if err := os.Lchown(filepath.Join(b.Rootfs(), name), i*1000, i*1000); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(filepath.Join(b.Rootfs(), name), long, time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				b.Umount(t)
				b.Remount(t, append([]string{"--read-only"}, flags...)...)
				for _, name := range names {
					p := filepath.Join(b.Rootfs(), name)
					var st unix.Stat_t
					if err := unix.Lstat(p, &st); err != nil || st.Atim.Sec != long.Unix() {
						t.Errorf("%s was last read at %v, %v", name, st.Atim, err)
					}
					env.MustCommand(t, "cp", "-r", p, filepath.Join(t.TempDir(), strings.ReplaceAll(name, "/", "-")))
				}
			}
			b.Umount(t)
		})
	}
}

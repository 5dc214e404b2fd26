package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func baseLayout(t *testing.T) string {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	return imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})
}

func TestABundleIsMountedOnce(t *testing.T) {
	layout := baseLayout(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	codes := make([]int, 8)
	var group sync.WaitGroup
	for i := range codes {
		group.Go(func() { codes[i] = env.Run(t, "mount", "--image", layout+":base", bundle).Code })
	}
	group.Wait()
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH) })
	done := 0
	for _, code := range codes {
		switch code {
		case 0:
			done++
		case imagetest.CodeState, imagetest.CodeBusy:
		default:
			t.Errorf("exit codes %v", codes)
		}
	}
	if done != 1 {
		t.Errorf("%d of %d mounts succeeded: %v", done, len(codes), codes)
	}
	env.Must(t, "umount", bundle)
}

func TestRepacksOfTwoBundlesToOneTagAreBothWhole(t *testing.T) {
	layout := baseLayout(t)
	bundles := []*imagetest.Bundle{env.Mount(t, layout+":base"), env.Mount(t, layout+":base")}
	for i, b := range bundles {
		if err := os.WriteFile(filepath.Join(b.Rootfs(), fmt.Sprint("of", i)), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		var group sync.WaitGroup
		for _, b := range bundles {
			group.Go(func() {
				if r := env.Run(t, "repack", "--image", layout+":new", b.Path); r.Code != 0 {
					t.Errorf("exit %d: %s", r.Code, r.Stderr)
				}
			})
		}
		group.Wait()
		env.Must(t, "fsck", "--layout", layout)
	}
	for _, b := range bundles {
		b.Umount(t)
	}
}

func TestARepackDuringWritesIsOnePointInTime(t *testing.T) {
	layout := baseLayout(t)
	for _, flag := range []string{"--passthrough=false", "--passthrough"} {
		b := env.Mount(t, layout+":base", flag)
		for _, name := range []string{"first", "second"} {
			if err := os.WriteFile(filepath.Join(b.Rootfs(), name), []byte("0"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		// Each round writes its number into two files, one after the other: at any point
		// in time the second is at most one behind.
		stop, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				for _, name := range []string{"first", "second"} {
					temp := filepath.Join(b.Rootfs(), "temp")
					err := errors.Join(os.WriteFile(temp, fmt.Append(nil, i), 0o644), os.Rename(temp, filepath.Join(b.Rootfs(), name)))
					if err != nil {
						ended <- err
						return
					}
				}
			}
		}()
		for i := range 6 {
			time.Sleep(20 * time.Millisecond)
			tag := fmt.Sprint("t", i)
			env.Must(t, "repack", "--image", layout+":"+tag, b.Path)
			var first, second int
			out := env.Must(t, "cat", "--image", layout+":"+tag, "/first") + " " + env.Must(t, "cat", "--image", layout+":"+tag, "/second")
			if _, err := fmt.Sscan(out, &first, &second); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
			if first != second && first != second+1 {
				t.Errorf("%s: the layer has %d and %d", flag, first, second)
			}
		}
		close(stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		b.Umount(t)
	}
}

func TestAnUmountWhileFilesAreInUseNamesTheHolderAndChangesNothing(t *testing.T) {
	layout := baseLayout(t)
	b := env.Mount(t, layout+":base")
	f, err := os.Create(filepath.Join(b.Rootfs(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	r := env.Run(t, "umount", b.Path)
	if r.Code != imagetest.CodeBusy || !strings.Contains(r.Stderr, fmt.Sprint(os.Getpid())) || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	if _, err := f.WriteString("goes on"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	b.Umount(t)
}

// umount(8) does not wait for the daemon.
func TestAMountRightAfterAnotherProgramsUnmountSucceeds(t *testing.T) {
	layout := baseLayout(t)
	b := env.Mount(t, layout+":base")
	for range 5 {
		if err := unix.Unmount(b.Rootfs(), 0); err != nil {
			t.Fatal(err)
		}
		b.Remount(t)
	}
	b.Umount(t)
}

// A descriptor on its way through a socket is in nobody's table, and keeps a mount busy.
func TestAnUmountWaitsAMomentForWhatNobodyIsSeenToUse(t *testing.T) {
	layout := baseLayout(t)
	b := env.Mount(t, layout+":base")
	f, err := os.Create(filepath.Join(b.Rootfs(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(int(f.Fd())), nil, 0), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		_, _ = unix.Close(pair[0]), unix.Close(pair[1])
	})
	b.Umount(t)
}

// A mount namespace that is made while a bundle is mounted has a copy of its mount, as of
// all others. Nobody there need know, or it is a container's.
func TestCopiesOfAMountInOtherNamespaces(t *testing.T) {
	layout := baseLayout(t)
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprintf("used: %v", used), func(t *testing.T) {
			b := env.Mount(t, layout+":base")
			pid := daemonOf(t, b.Path)
			dir := "/"
			if used {
				dir = b.Rootfs()
			}
			other := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `cd "$0"; echo; exec sleep 300`, dir)
			other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := other.StdoutPipe()
			if err == nil {
				err = other.Start()
			}
			if err == nil {
				_, err = out.Read(make([]byte, 1))
			}
			if err != nil {
				t.Fatal(err)
			}
			end := sync.OnceFunc(func() {
				_ = other.Process.Kill()
				_ = other.Wait() //nolint:errcheck // it was killed
			})
			t.Cleanup(end)
			if want := fmt.Sprintf("%d sleep (cwd)", other.Process.Pid); used {
				for range 2 { // with the mount here, and without
					if r := env.Run(t, "umount", b.Path); r.Code != imagetest.CodeBusy || !strings.Contains(r.Stderr, want) {
						t.Errorf("exit %d: %s; want %q named", r.Code, r.Stderr, want)
					}
				}
				end()
			} else {
				b.Umount(t)
			}
			if mounted(b.Rootfs()) {
				t.Error("the bundle is still mounted here")
			}
			awaitEnd(t, pid)
			b.Remount(t)
			b.Umount(t)
		})
	}
}

func TestRemovingAMountedBundleEndsItsMount(t *testing.T) {
	for _, order := range []string{"upper first", "as it comes"} {
		t.Run(order, func(t *testing.T) { removeMounted(t, order) })
	}
}

func removeMounted(t *testing.T, order string) {
	layout := baseLayout(t)
	b := env.Mount(t, layout+":base")
	before := imagetest.MustReadTree(t, layout)
	pid := daemonOf(t, b.Path)
	script := map[string]string{"upper first": `rm -rf "$0/upper"; rm -rf "$0"`, "as it comes": `chmod -R 0777 "$0"; rm -rf "$0"`}[order]
	r := env.Command(t, nil, "sh", "-c", script, b.Path)
	// What rm says at most is that the mountpoint is busy.
	if strings.Count(r.Stderr, "\n") > 1 || order == "upper first" && r.Code != 0 {
		t.Errorf("rm: exit %d: %s", r.Code, r.Stderr)
	}
	awaitEnd(t, pid)
	if mounted(b.Rootfs()) {
		t.Error("still mounted")
	}
	if _, err := os.Lstat(b.Rootfs()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mountpoint: %v", err)
	}
	imagetest.SameTree(t, "the layout", before, imagetest.MustReadTree(t, layout), imagetest.CompareOptions{IgnoreTime: func(string) bool { return true }})
	env.Must(t, "mount", "--image", layout+":base", b.Path)
	b.Umount(t)
}

// awaitEnd waits for a daemon that has cause to end.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the daemon goes on")
		}
	}
}

// The daemon of a bundle that was removed comes back for its mountpoint: by then the name
// may be another bundle's.
func TestTheMountpointOfTheNextBundleIsLeftAlone(t *testing.T) {
	b := env.Mount(t, baseLayout(t)+":base")
	pid := daemonOf(t, b.Path)
	env.MustCommand(t, "sh", "-ec", `rm -rf "$0/upper"; rm -rf "$0"; mkdir -p "$0/rootfs"`, b.Path)
	awaitEnd(t, pid)
	if _, err := os.Lstat(b.Rootfs()); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(b.Path); err != nil {
		t.Fatal(err)
	}
}

func TestADeadDaemonsMountIsCleanedByUmountToo(t *testing.T) {
	layout := baseLayout(t)
	b := env.Mount(t, layout+":base")
	if err := os.WriteFile(filepath.Join(b.Rootfs(), "kept"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(daemonOf(t, b.Path), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.Umount(t)
	if mounted(b.Rootfs()) {
		t.Error("still mounted")
	}
	b.Remount(t)
	if _, err := os.Stat(filepath.Join(b.Rootfs(), "kept")); err != nil {
		t.Error(err)
	}
	b.Umount(t)
}

func TestADiskIsFreeAsSoonAsItsBundleIsUnmounted(t *testing.T) {
	imagetest.NeedFuse(t)
	disk := filepath.Join(t.TempDir(), "disk")
	smallDisk(t, disk, 20<<10)
	layout := baseLayout(t)
	b := env.MountAt(t, filepath.Join(disk, "bundle"), layout+":base")
	for range 20 {
		b.Umount(t)
		if err := unix.Unmount(disk, 0); err != nil {
			t.Fatal(err)
		}
		env.MustCommand(t, "mount", "-o", "loop", disk+".image", disk)
		b.Remount(t)
	}
	b.Umount(t)
}

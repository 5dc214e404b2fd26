package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/notify"
	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// defaultPath is PATH where the image's config has none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// initProcess is process 1 of a container.
type initProcess struct {
	spec      spec
	conn      net.Conn
	parent    *json.Decoder // of conn
	announced bool          // the launcher does not wait for the filter's listener (any more)
}

// initMain is the init's process.
func initMain() int {
	catch() // as the launcher
	conn, err := parentConn()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run in bundle:", err)
		return 1
	}
	p := &initProcess{conn: conn, parent: json.NewDecoder(conn)}
	if err := p.parent.Decode(&p.spec); err != nil {
		return 1 // the launcher is gone
	}
	p.announced = p.spec.Filter == noFilter
	code, err := p.run()
	r := report{Exit: code}
	if err != nil {
		r.Error, r.Kind = bundle.TellError(err)
	}
	if !p.announced {
		_, err = conn.Write([]byte{'-'})
	} else {
		err = nil
	}
	if err == nil {
		err = json.NewEncoder(conn).Encode(&r)
	}
	if err != nil {
		return 1
	}
	return 0
}

// run makes the program's world, starts it, and returns when it has ended.
func (p *initProcess) run() (code int, err error) {
	// The filter is this thread's and its children's; never unlocked.
	runtime.LockOSThread()
	if err := setUpMounts(&p.spec); err != nil {
		return 0, p.spec.explainMount(err)
	}
	program, attr, code, err := p.program()
	if err != nil {
		return code, err
	}
	if p.spec.Filter != noFilter {
		listener, err := sys.ListenSeccomp(notify.Filter(notify.Set(p.spec.Filter)))
		if err == nil {
			err = errors.Join(sendFile(p.conn, listener), listener.Close())
			p.announced = true
		}
		if err != nil {
			return 0, fmt.Errorf("run in bundle: %w", err)
		}
	}
	child, err := os.StartProcess(program, p.spec.Args, attr)
	if err != nil {
		code = CodeCannotRun
		if errors.Is(err, os.ErrNotExist) { // its interpreter
			code = CodeNotFound
		}
		return code, fmt.Errorf("run %s in the bundle: %w", p.spec.Args[0], err)
	}
	go func() {
		hear(p.parent, func(s unix.Signal) { _ = child.Signal(s) }) // that it has ended is found out
		os.Exit(1)
	}()
	return reap(child.Pid)
}

// reap waits for the program, and for whatever else becomes this process's child.
func reap(program int) (int, error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("run in bundle: wait: %w", err)
		case ws.Stopped():
			// Nobody could continue it: whose shell this is has not stopped.
			if pid == program && ws.StopSignal() != unix.SIGSTOP {
				_ = unix.Kill(-pid, unix.SIGCONT)
			}
		case pid == program:
			return signalCode(ws), nil
		}
	}
}

// program finds the program and how to start it. The root is the image's already.
func (p *initProcess) program() (path string, attr *os.ProcAttr, code int, err error) {
	who, err := user.GetExecUserPath(p.spec.User, nil, "/etc/passwd", "/etc/group")
	if err != nil {
		return "", nil, 0, fmt.Errorf("%w: %q: %v", bundle.ErrUser, p.spec.User, err)
	}
	env := mergeEnv([]string{defaultPath}, p.spec.Env)
	if who.Home != "" && !p.spec.OwnHome {
		env = mergeEnv(env, []string{"HOME=" + who.Home})
	}
	if err := os.Chdir(p.spec.Dir); err != nil {
		if p.spec.OwnDir {
			return "", nil, 0, fmt.Errorf("run in bundle: %w", err)
		}
		if err := os.Chdir("/"); err != nil {
			return "", nil, 0, err
		}
	}
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			if err := os.Setenv("PATH", v); err != nil {
				return "", nil, 0, err
			}
		}
	}
	path, err = exec.LookPath(p.spec.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		code = CodeNotFound
		if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EISDIR) {
			code = CodeCannotRun
		}
		return "", nil, code, fmt.Errorf("run %s in the bundle: %w", p.spec.Args[0], cause(err))
	}
	attr = &os.ProcAttr{Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{}}
	if p.spec.TTY { // a group of its own, whose number it can see: shells want one
		attr.Sys.Foreground, attr.Sys.Ctty = true, 0
	}
	groups := make([]uint32, 0, len(who.Sgids))
	for _, g := range who.Sgids {
		groups = append(groups, uint32(g))
	}
	// The one id is root's already, with no other group that means anything.
	if !p.spec.OneID || who.Uid != 0 || who.Gid != 0 || slices.ContainsFunc(groups, func(g uint32) bool { return g != 0 }) {
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(who.Uid), Gid: uint32(who.Gid), Groups: groups}
	}
	return path, attr, 0, nil
}

// cause drops what exec says beside the reason.
func cause(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

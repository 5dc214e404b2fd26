package userns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/notify"
)

// Mode says which ids a program has.
type Mode string

// The modes; see the package's comment.
const (
	ModeAuto  Mode = ""      // of the others the one with most ids that works
	ModeRoot  Mode = "root"  // the caller's own namespace
	ModeRange Mode = "range" // the ranges of /etc/subuid and /etc/subgid
	ModeOneID Mode = "one"   // the caller's id alone
)

// ParseMode reads the name of a mode that can be asked for.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeRange, ModeOneID:
		return m, nil
	case "auto":
		return ModeAuto, nil
	}
	return "", fmt.Errorf("ids %q: want auto, range or one", s)
}

// ErrNoRange: there are no ranges of ids to use, or no means to.
var ErrNoRange = errors.New("no range of ids")

// ErrNamespace: the kernel, or who configured it, allows no user namespace.
var ErrNamespace = errors.New("no user namespace")

// plan is how a program gets its ids.
type plan struct {
	mode   Mode
	filter int // see spec
	uids   []idRange
	gids   []idRange
	failed error // why mapIDs failed
}

// idRange maps size ids from inside on to outside.
type idRange struct{ inside, outside, size int64 }

// choose makes the plan.
func choose(want Mode, e *bundle.Entry) (*plan, error) {
	if !bundle.PlainUser() && want == ModeAuto {
		if e.Mounted && e.Mapped {
			return nil, fmt.Errorf("%s shows the host's ids of its maps: unmount it first: %w", e.Path, bundle.ErrMounted)
		}
		p := &plan{mode: ModeRoot, filter: noFilter}
		if !bundle.OwnsIDs() {
			p.filter = int(notify.SetDevices)
		}
		return p, nil
	}
	p := &plan{mode: ModeOneID, filter: int(notify.SetOneID)}
	if want == ModeOneID {
		return p, nil
	}
	uids, gids, err := ranges()
	switch {
	case err != nil && want == ModeRange:
		return nil, err
	case err != nil:
		return p, nil
	case e.Mounted:
		if want == ModeRange {
			return nil, fmt.Errorf("%s: a range of ids takes a mount of its own: unmount the bundle first: %w",
				e.Path, bundle.ErrMounted)
		}
		return p, nil
	}
	return &plan{mode: ModeRange, filter: int(notify.SetDevices), uids: uids, gids: gids}, nil
}

// HasRange reports whether a program that is run in a bundle which is not mounted gets a
// range of ids (ModeRange).
func HasRange() bool {
	if !bundle.PlainUser() {
		return false
	}
	_, _, err := ranges()
	return err == nil
}

// ranges are the caller's ids, root first, in the order in which they are mapped.
func ranges() (uids, gids []idRange, err error) {
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, nil, fmt.Errorf("%w: %s not found: install the uidmap package", ErrNoRange, tool)
		}
	}
	if uids, err = rangesIn("/etc/subuid", os.Geteuid()); err != nil {
		return nil, nil, err
	}
	gids, err = rangesIn("/etc/subgid", os.Getegid())
	return uids, gids, err
}

func rangesIn(file string, self int) ([]idRange, error) {
	uid := strconv.Itoa(os.Geteuid())
	name := uid
	if u, err := user.LookupUid(os.Geteuid()); err == nil {
		name = u.Name
	}
	subs, err := user.ParseSubIDFileFilter(file, func(s user.SubID) bool { return s.Name == name || s.Name == uid })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	out := []idRange{{0, int64(self), 1}}
	next := int64(1)
	for _, s := range subs {
		if s.Count > 0 {
			out = append(out, idRange{next, s.SubID, s.Count})
			next += s.Count
		}
	}
	if len(out) == 1 {
		return nil, fmt.Errorf("%w: none of %s in %s: usermod --add-subuids and --add-subgids 100000-165535 %s",
			ErrNoRange, name, file, name)
	}
	return out, nil
}

// attributes are those of the launcher. It has a mount namespace apart if it mounts
// something: it would hold every mount that there is now, and keep it from ending.
func (p *plan) attributes(mounts bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{}
	if mounts {
		a.Cloneflags |= unix.CLONE_NEWNS
	}
	switch p.mode {
	case ModeOneID:
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	case ModeRange:
		a.Cloneflags |= unix.CLONE_NEWUSER
	case ModeAuto, ModeRoot:
	}
	return a
}

// explain puts a meaning to why the launcher could not be started.
func (p *plan) explain(err error) error {
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) ||
		errors.Is(err, unix.EUSERS) || errors.Is(err, unix.EINVAL)
	switch {
	case !denied:
		return fmt.Errorf("run in bundle: %w", err)
	case p.mode == ModeRoot:
		return fmt.Errorf("run in bundle: a mount namespace takes CAP_SYS_ADMIN: %w", err)
	}
	return fmt.Errorf("%w: %w (%s)", ErrNamespace, err, restrictions)
}

// restrictions are what keeps users from user namespaces, or from having privileges in
// them.
const restrictions = "sysctl user.max_user_namespaces, and kernel.unprivileged_userns_clone or " +
	"kernel.apparmor_restrict_unprivileged_userns where there are such; in a container: its seccomp profile"

// explainMount puts a meaning to a mount that was not permitted in a namespace where
// this process should be root.
func (sp *spec) explainMount(err error) error {
	if sp.Filter != noFilter && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
		return fmt.Errorf("run in bundle: %w: no privileges in the user namespace (%s)", err, restrictions)
	}
	return fmt.Errorf("run in bundle: %w", err)
}

// mapIDs gives the launcher's user namespace its ids, where it has none yet.
func (p *plan) mapIDs(ctx context.Context, pid int) error {
	if p.mode != ModeRange {
		return nil
	}
	for _, m := range []struct {
		tool string
		list []idRange
	}{{"newuidmap", p.uids}, {"newgidmap", p.gids}} {
		args := []string{strconv.Itoa(pid)}
		for _, r := range m.list {
			for _, n := range []int64{r.inside, r.outside, r.size} {
				args = append(args, strconv.FormatInt(n, 10))
			}
		}
		if out, err := exec.CommandContext(ctx, m.tool, args...).CombinedOutput(); err != nil {
			p.failed = fmt.Errorf("%w: %s: %s: %w", ErrNoRange, m.tool, strings.TrimSpace(string(out)), err)
			return p.failed
		}
	}
	return nil
}

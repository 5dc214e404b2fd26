package notify

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

func TestIdsChangeAsTheKernelChangesThem(t *testing.T) {
	root, mail := idSet{}, idSet{8, 8, 8, 8}
	for name, c := range map[string]struct {
		got  func() (idSet, error)
		want idSet
		err  error
	}{
		"root sets all":                              {func() (idSet, error) { return setOne(root, 8, true) }, mail, nil},
		"another sets itself":                        {func() (idSet, error) { return setOne(idSet{8, 0, 0, 0}, 8, false) }, idSet{8, 8, 0, 8}, nil},
		"another goes back to the saved id":          {func() (idSet, error) { return setOne(idSet{8, 8, 0, 8}, 0, false) }, idSet{8, 0, 0, 0}, nil},
		"another is refused an id it has not":        {func() (idSet, error) { return setOne(mail, 0, false) }, mail, unix.EPERM},
		"-1 is no id":                                {func() (idSet, error) { return setOne(root, keep, true) }, root, unix.EINVAL},
		"setreuid swaps":                             {func() (idSet, error) { return setTwo(idSet{8, 9, 9, 9}, 9, 8, false) }, idSet{9, 8, 8, 8}, nil},
		"setreuid of the effective id saves it":      {func() (idSet, error) { return setTwo(root, keep, 8, true) }, idSet{0, 8, 8, 8}, nil},
		"setreuid with nothing":                      {func() (idSet, error) { return setTwo(mail, keep, keep, false) }, mail, nil},
		"setreuid is refused":                        {func() (idSet, error) { return setTwo(mail, 0, keep, false) }, mail, unix.EPERM},
		"setresuid keeps what is not given":          {func() (idSet, error) { return setThree(root, keep, 8, keep, true) }, idSet{0, 8, 0, 8}, nil},
		"setresuid takes any of the three":           {func() (idSet, error) { return setThree(idSet{1, 2, 3, 2}, 3, 1, 2, false) }, idSet{3, 1, 2, 1}, nil},
		"setresuid is refused an id that is not one": {func() (idSet, error) { return setThree(idSet{1, 2, 3, 2}, keep, 4, keep, false) }, idSet{1, 2, 3, 2}, unix.EPERM},
	} {
		if got, err := c.got(); got != c.want || err != c.err { //nolint:errorlint // a raw errno
			t.Errorf("%s: %v, %v, want %v, %v", name, got, err, c.want, c.err)
		}
	}
}

func TestCapabilitiesGoAndComeWithUserIds(t *testing.T) {
	var c creds
	c.setUID(idSet{0, 8, 0, 8})
	if c.can(unix.CAP_CHOWN) {
		t.Error("an effective id that is not root's leaves capabilities")
	}
	c.setUID(idSet{})
	if !c.can(unix.CAP_CHOWN) {
		t.Error("going back to root brings them not back")
	}
	kept := creds{keepCaps: true}
	kept.setUID(idSet{8, 8, 8, 8})
	if kept.can(unix.CAP_SETGID) || kept.noPermit != 0 {
		t.Error("PR_SET_KEEPCAPS keeps the effective set, or not the permitted one")
	}
	kept.noEffect = 0 // capset(2)
	kept.execute()
	if kept.can(unix.CAP_SETGID) || kept.noPermit != allCaps || kept.keepCaps {
		t.Error("a program that is no root's has capabilities")
	}
	c.setUID(idSet{8, 8, 8, 8})
	if c.can(unix.CAP_SETUID) || c.noPermit != allCaps {
		t.Error("who has dropped root has capabilities")
	}
	c.setUID(idSet{})
	c.execute()
	if !c.can(unix.CAP_SETUID) {
		t.Error("a program of root's has no capabilities")
	}
}

// The jumps of a classic BPF program count instructions; this runs it.
func TestTheFilterTellsOfTheCallsItNames(t *testing.T) {
	if !Supported() {
		t.Skip("no filter for this architecture")
	}
	run := func(set Set, arch, nr, arg uint32) uint32 {
		prog := Filter(set)
		var a uint32
		for pc := 0; ; pc++ {
			switch in := prog[pc]; in.Code {
			case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
				a = map[uint32]uint32{0: nr, 4: arch, 16: arg}[in.K]
			case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
				if a == in.K {
					pc += int(in.Jt)
				} else {
					pc += int(in.Jf)
				}
			case unix.BPF_RET | unix.BPF_K:
				return in.K
			default:
				t.Fatalf("instruction %#x", in.Code)
			}
		}
	}
	const tell, allow = uint32(unix.SECCOMP_RET_USER_NOTIF), uint32(unix.SECCOMP_RET_ALLOW)
	for _, c := range []struct {
		what          string
		set           Set
		arch, nr, arg uint32
		want          uint32
	}{
		{"mknodat", SetDevices, sys.AuditArch(), unix.SYS_MKNODAT, 0, tell},
		{"fchownat where ids are real", SetDevices, sys.AuditArch(), unix.SYS_FCHOWNAT, 0, allow},
		{"fchownat", SetOneID, sys.AuditArch(), unix.SYS_FCHOWNAT, 0, tell},
		{"getuid", SetOneID, sys.AuditArch(), unix.SYS_GETUID, 0, tell},
		{"read", SetOneID, sys.AuditArch(), unix.SYS_READ, 0, allow},
		{"prctl(PR_SET_NAME)", SetOneID, sys.AuditArch(), unix.SYS_PRCTL, unix.PR_SET_NAME, allow},
		{"prctl(PR_SET_KEEPCAPS)", SetOneID, sys.AuditArch(), unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, tell},
		{"prctl(PR_SET_KEEPCAPS) where ids are real", SetDevices, sys.AuditArch(), unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, allow},
		{"another architecture's", SetOneID, unix.AUDIT_ARCH_I386, unix.SYS_MKNODAT, 0, allow},
	} {
		if got := run(c.set, c.arch, c.nr, c.arg); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
	}
}

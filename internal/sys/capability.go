package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// KeepCapabilities takes all capabilities but keep from the calling thread's bounding
// set, and new privileges from whatever it executes (capabilities(7), prctl(2)): a
// program that this thread starts as root has those of keep alone. The caller has
// locked its goroutine to the thread, and lets the thread end with it.
func KeepCapabilities(keep ...int) error {
	var want uint64
	for _, c := range keep {
		want |= 1 << c
	}
	for c := 0; c <= unix.CAP_LAST_CAP || c < 64; c++ {
		if want>>c&1 != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > 0 {
			break // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// HasCapability reports whether the calling thread has a capability in its effective
// set.
func HasCapability(capability int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective>>(capability%32)&1 != 0
}

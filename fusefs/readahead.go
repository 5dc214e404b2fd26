package fusefs

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// readAheadKB is how much is read ahead of a sequential reader, in KiB. INIT
// cannot ask for more than the kernel's 128; a file in sysfs can, for root.
// docs/fuse.md has the measurement.
const readAheadKB = 512

// raiseReadAhead sets the mount's read-ahead window. The mount must be served:
// finding its device number can ask for the root's attributes.
func raiseReadAhead(mountpoint string) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, mountpoint, unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return err
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
	return os.WriteFile(path, []byte(strconv.Itoa(readAheadKB)), 0)
}

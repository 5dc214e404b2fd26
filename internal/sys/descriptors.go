package sys

import "golang.org/x/sys/unix"

// DescriptorShare is how many descriptors may be kept open only to be quick: a quarter
// of what the process may have (RLIMIT_NOFILE), and no more than most.
func DescriptorShare(most int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return most
	}
	return int(min(limit.Cur/4, uint64(most)))
}

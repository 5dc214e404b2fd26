// Package userns runs programs in a bundle's tree as root of the image, with or
// without privileges (Run; docs/rootless.md).
//
//	Run             the caller's process
//	 └ launcher     in the container's user namespace, where there is one; makes the
//	   │            bundle's mount, in a mount namespace apart, if it is not mounted,
//	   │            supervises system calls (package notify), takes away what it made
//	   ├ daemon     serves that mount; ends with the launcher
//	   └ init       in a mount and pid namespace below; makes /proc, /dev and so on,
//	     │          changes the root, installs the filter, waits for orphans
//	     └ program
//
// Each is this same executable, under a hidden command's name. Each holds the end of a
// socket that its parent has the other end of, and ends when that is closed: whoever is
// killed, nothing is left. When init ends, the kernel ends everything in its pid
// namespace.
//
// Which user namespace there is (Mode):
//
//   - none, where the caller is root and has all ids (ModeRoot);
//   - none of ours, where the caller is the root of one with several ids;
//   - one whose ids are the caller and its ranges in /etc/subuid and /etc/subgid
//     (newuidmap(1)): ModeRange;
//   - one whose only id is the caller: ModeOneID. All else that the program does with
//     ids is recorded.
package userns

// Package notify lets programs without privileges act as the root of an image: it
// answers the system calls that the kernel would refuse them, by seccomp user
// notification (seccomp_unotify(2)).
//
// A filter (Filter) is put on the first program of a container. The calls it names stop
// there and come to the supervisor (Serve), which runs outside, in the same user
// namespace and in a pid namespace above. For each it does one of three things:
//
//   - record it in the tree (Tree) and say that it was done: owners, devices,
//     security.* and trusted.* attributes of files of the tree;
//   - answer it from its own table: the user and group ids of processes, where the
//     namespace has one id alone;
//   - let the kernel go on with it (SECCOMP_USER_NOTIF_FLAG_CONTINUE): everything else,
//     of files outside the tree above all. That gives nobody more than he has: the
//     kernel checks the call as ever.
//
// What a call is about is read while its caller is stopped: memory by
// process_vm_readv(2), paths by a thread that has the caller's root and working
// directory (resolve.go). Before anything is changed the notification is checked to be
// still waiting, so that the process whose memory was read is the one that asked.
// Another thread of the program can change a path meanwhile; it can as well make the
// call with that path.
//
// The ids in the table are what the program believes. The kernel sees one user
// throughout, so that a program that has dropped its privileges here can still open
// what it could before: nothing is protected from it that is not protected from the
// user. What such a process creates belongs to the ids it believes in (Tree.Actor).
//
// Locks: idTable.mu; nothing is called while it is held.
package notify

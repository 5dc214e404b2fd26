//go:build !amd64 && !arm64

package notify

// auditArch is none: there is no filter for other architectures.
const auditArch = 0

const sysFstatat = -1

var archCalls = map[int32]handler{}

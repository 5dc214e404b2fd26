//go:build !amd64 && !arm64

package notify

const sysFstatat = -1

var archCalls = map[int32]handler{}

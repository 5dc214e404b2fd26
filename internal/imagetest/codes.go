package imagetest

// Exit codes of the program, by docs/cli.md.
const (
	CodeFailure    = 1
	CodeUsage      = 2
	CodeNotFound   = 3
	CodeImage      = 4
	CodeState      = 5
	CodeBusy       = 6
	CodeMachine    = 7
	CodePermission = 8
	CodeSpace      = 9
	CodeInterrupt  = 10
	CodeSpec       = 11
	CodeStep       = 12
)

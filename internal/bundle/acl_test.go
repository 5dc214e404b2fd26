package bundle

import (
	"encoding/hex"
	"testing"
)

func TestACLsOfArchivesBecomeTheKernelsForm(t *testing.T) {
	for text, want := range map[string]string{
		"user::rw-,group::r--,other::r--":                        "02000000" + "01000600ffffffff" + "04000400ffffffff" + "20000400ffffffff",
		"user::rwx\nuser:lisa:r-x:502\nmask::r-x\n":              "02000000" + "01000700ffffffff" + "02000500f6010000" + "10000500ffffffff",
		"other::---,mask::rwx,group:7:-w-,user:9:r--,user:8:--x": "02000000" + "0200010008000000" + "0200040009000000" + "0800020007000000" + "10000700ffffffff" + "20000000ffffffff",
		"u::r--  # a comment\ng::r--\no::r--":                    "02000000" + "01000400ffffffff" + "04000400ffffffff" + "20000400ffffffff",
		"user:lisa:rwx":                                          "", "user::rwx:1:2": "", "user": "", "who::rwx": "", "user::abc": "", "user:4294967296:r--": "",
	} {
		got, err := parseACL(text)
		if h := hex.EncodeToString([]byte(got)); h != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %s, %v, want %s", text, h, err, want)
		}
	}
}

package main

import (
	"testing"
	"time"
)

func TestSizesAndAgesAreRead(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "17": 17, "17B": 17, "1k": 1024, "2KB": 2000, "2KiB": 2048, "500MB": 500e6, "3 GiB": 3 << 30, "1T": 1 << 40,
		"": -1, "MB": -1, "-1": -1, "1.5GB": -1, "1XB": -1, "9999999TiB": -1,
	} {
		got, err := parseSize(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("size %q: %d, want %d (%v)", s, got, want, err)
		}
	}
	for s, want := range map[string]time.Duration{
		"30d": 30 * 24 * time.Hour, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute,
		"": 0, "d": 0, "0d": 0, "-1h": 0, "0s": 0, "7": 0, "99999999d": 0,
	} {
		got, err := parseAge(s)
		if (err == nil) != (want > 0) || err == nil && got != want {
			t.Errorf("age %q: %v, want %v (%v)", s, got, want, err)
		}
	}
}

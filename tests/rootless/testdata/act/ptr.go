package main

import "unsafe"

func ptr(p *uint32) uintptr { return uintptr(unsafe.Pointer(p)) }

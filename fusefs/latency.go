package fusefs

import (
	"encoding/binary"
	"os"
	"strings"
)

// A program that waits for an answer leaves its processor idle, and so does the server
// that waits for the next request. Where an idle processor sleeps deeply, as in a
// virtual machine, where it is taken away, waking it costs several times what the
// request does. The kernel's quality of service for power management lets root say how
// long waking may take (Documentation/power/pm_qos_interface.rst): with 0 idle
// processors poll. The watch says so in bursts of requests, and takes it back after.

const (
	latencyDevice = "/dev/cpu_dma_latency"
	// idleDriver names what puts idle processors to sleep. Without one they halt, and
	// the device changes nothing (cpuidle_idle_call in kernel/sched/idle.c).
	idleDriver = "/sys/devices/system/cpu/cpuidle/current_driver"
)

// idleDriverWorks reports whether the kernel has a driver for idle processors, as the
// file of its name says. Where that cannot be read it may have one.
func idleDriverWorks(file string) bool {
	name, err := os.ReadFile(file)
	return err != nil || strings.TrimSpace(string(name)) != "none"
}

// Values of the device, in microseconds.
const (
	noLatency  = 0
	anyLatency = 2_000_000_000 // PM_QOS_CPU_LATENCY_DEFAULT_VALUE
)

// processors are kept awake, or let sleep. The zero value does nothing.
type processors struct {
	device *os.File // nil: not allowed here
	awake  bool
}

// open is how root gets to the device; others, to whom it reports false, leave processors
// alone.
func (p *processors) open(device string) bool {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err == nil {
		p.device = f
	}
	return err == nil
}

// close takes back what was said.
func (p *processors) close() error {
	if p.device == nil {
		return nil
	}
	return p.device.Close()
}

func (p *processors) keepAwake() {
	if !p.awake {
		p.awake = p.say(noLatency)
	}
}

func (p *processors) letSleep() {
	if p.awake {
		p.awake = !p.say(anyLatency)
	}
}

// say writes a latency, and reports whether that could be done.
func (p *processors) say(microseconds int32) bool {
	if p.device == nil {
		return false
	}
	_, err := p.device.Write(binary.NativeEndian.AppendUint32(nil, uint32(microseconds)))
	return err == nil
}

package adapters

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootTime is a moment on the clock that counts from boot, suspended time
// included, and that nobody can set: nanoseconds. Leases are measured by it.
type BootTime int64

// Now reads the clock.
func Now() BootTime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux has this clock
	}
	return BootTime(ts.Nano())
}

// Add is the moment d later.
func (t BootTime) Add(d time.Duration) BootTime { return t + BootTime(d) }

// Until is how long it is from now to t; negative when t is over.
func (t BootTime) Until() time.Duration { return time.Duration(t - Now()) }

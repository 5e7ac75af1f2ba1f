package supervisor

import (
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// MachineShare completes what a pool of this machine offers: parts of capacity
// that are zero become all cores and three quarters of the memory, and no slots
// become 64 for each core.
func MachineShare(capacity pcm.Resources, slots int) (pcm.Resources, int) {
	if capacity.CPU == 0 {
		capacity.CPU = pcm.MilliCPU(runtime.NumCPU()) * 1000
	}
	if capacity.Memory == 0 {
		capacity.Memory = machineMemory() / 4 * 3
	}
	if slots <= 0 {
		slots = 64 * runtime.NumCPU()
	}
	return capacity, slots
}

func machineMemory() pcm.Bytes {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 1 << 30
	}
	return pcm.Bytes(info.Totalram) * pcm.Bytes(info.Unit)
}

package process

import (
	"os"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"golang.org/x/sys/unix"
)

// limiter bounds what tasks may use, by one of the kernel's means.
type limiter interface {
	name() string      // of the means, for labels
	missing() []string // what it would bound if it could
	// make prepares the bounds of one task. Zero resources are not bounded.
	make(key string, r pcm.Resources, pids int) (group, error)
	// sweep kills and removes what an earlier process with the same name left.
	sweep() error
	// close gives the means back; nothing runs within any more.
	close() error
}

// group is the bounds of one task.
type group interface {
	// start calls f, which starts attr, so that the child is inside the bounds
	// from its first instruction. It is called on a locked thread, not the main
	// one. Unless home, that thread is still inside the bounds itself, whether
	// the start failed or not, and must come to its end.
	start(attr *os.ProcAttr, f func() (*os.Process, error)) (proc *os.Process, home bool, err error)
	// kill kills all processes within; true means that none can have got away.
	kill() bool
	// procs lists what is within; nil where that isn't known.
	procs() []int
	// folders are those of its control groups; nil without.
	folders() []string
	// freeze halts all within, or lets it go on. It tells whether that can be.
	freeze(on bool) bool
	usage() use
	// tight tells whether memory was refused for the bound.
	tight() bool
	remove()
}

// use is what a task has used.
type use struct {
	peak pcm.Bytes     // of memory; 0: unknown
	cpu  time.Duration // of all its processes; 0: unknown
	oom  bool          // the kernel killed for memory
}

// cpuPeriod is how often, in microseconds, a task gets its time anew.
const cpuPeriod = 100_000

func cpuQuota(cpu pcm.MilliCPU) int64 {
	return max(int64(cpu)*cpuPeriod/1000, 1000) // the kernel takes no less
}

// rlimits is the weaker means that is always there: each process of a task is
// bounded by itself, and running out of memory is a failed allocation.
type rlimits struct{}

func (rlimits) name() string      { return "rlimit" }
func (rlimits) missing() []string { return []string{"cpu", "pids"} }
func (rlimits) sweep() error      { return nil }
func (rlimits) close() error      { return nil }
func (rlimits) make(_ string, r pcm.Resources, _ int) (group, error) {
	return rlimited{uint64(r.Memory)}, nil
}

type rlimited struct{ memory uint64 }

// start holds the child at its exec, as a debugger does, to set its limits.
func (g rlimited) start(attr *os.ProcAttr, f func() (*os.Process, error)) (*os.Process, bool, error) {
	if g.memory == 0 {
		proc, err := f()
		return proc, true, err
	}
	attr.Sys.Ptrace = true
	proc, err := f()
	if err != nil {
		return nil, true, err
	}
	var ws syscall.WaitStatus
	for {
		_, err = syscall.Wait4(proc.Pid, &ws, 0, nil)
		if err != syscall.EINTR {
			break
		}
	}
	if err == nil && ws.Stopped() {
		// Private writable memory: what is merely reserved doesn't count.
		lim := &unix.Rlimit{Cur: g.memory, Max: g.memory}
		err = unix.Prlimit(proc.Pid, unix.RLIMIT_DATA, lim, nil)
		core := &unix.Rlimit{}
		unix.Prlimit(proc.Pid, unix.RLIMIT_CORE, core, nil)
	}
	if err == nil {
		err = syscall.PtraceDetach(proc.Pid)
	}
	if err != nil {
		proc.Kill()
		proc.Wait()
		return nil, true, os.NewSyscallError("prlimit", err)
	}
	return proc, true, nil
}

func (rlimited) kill() bool        { return false }
func (rlimited) procs() []int      { return nil }
func (rlimited) folders() []string { return nil }
func (rlimited) freeze(bool) bool  { return false }
func (rlimited) usage() use        { return use{} }
func (rlimited) tight() bool       { return false }
func (rlimited) remove()           {}

package process

import (
	"context"
	"syscall"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

var _ supervisor.Halter = (*Runner)(nil)

// Suspend implements adapters.Suspender.
func (a *Adapter) Suspend(ctx context.Context, k adapters.Key) error { return a.Halt(ctx, k, true) }

// Resume implements adapters.Suspender.
func (a *Adapter) Resume(ctx context.Context, k adapters.Key) error { return a.Halt(ctx, k, false) }

// Halt implements supervisor.Halter: by the control group, else by signals to
// all that can be found.
func (r *Runner) Halt(k adapters.Key, on bool) error {
	r.mu.Lock()
	c := r.children[k]
	r.mu.Unlock()
	if c == nil {
		return pcm.Errorf(pcm.Conflict, "attempt %s does not run", k)
	}
	c.halt(on)
	return nil
}

func (c *child) halt(on bool) {
	if c.group.freeze(on) {
		return
	}
	sig := syscall.SIGCONT
	if on {
		sig = syscall.SIGSTOP
	}
	seen := map[int]bool{}
	for range 16 { // what is made meanwhile is stopped as well
		news := false
		for _, pid := range append(append([]int{c.proc.Pid}, descendants(c.proc.Pid)...), c.group.procs()...) {
			if !seen[pid] {
				seen[pid], news = true, true
				syscall.Kill(pid, sig)
			}
		}
		if !news {
			return
		}
	}
}

package container

import (
	"fmt"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// states are the engines' words for where a container stands. "exited" says
// nothing yet of the outcome: see judge. The last four are podman's.
var states = adapters.States{
	"created":    {State: adapters.Pending, Reason: "its container is made and not started yet"},
	"running":    {State: adapters.Running},
	"restarting": {State: adapters.Running},
	"paused":     {State: adapters.Suspended},
	"removing":   {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its container is being removed from the engine"},
	"exited":     {State: adapters.Ended},
	"dead":       {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "the container engine could not do away with its container"},

	"configured":  {State: adapters.Pending, Reason: "its container is made and not started yet"},
	"initialized": {State: adapters.Pending, Reason: "its container is made and not started yet"},
	"stopping":    {State: adapters.Running},
	"stopped":     {State: adapters.Ended},
}

// end is all that is known of how a container ended.
type end struct {
	state  *container.State
	code   int
	killed string        // the signal that somebody else sent through the engine
	blind  time.Duration // how long the engine was away when the end came; 0: it was seen
	use    use
	limit  pcm.Bytes
}

// judge decides what the end of a container means.
func judge(e end) supervisor.Exit {
	x := supervisor.Exit{Outcome: pcm.OutcomeOK, Code: e.code, CPUMS: e.use.cpuMS, Memory: e.use.peak}
	if e.state != nil {
		x.Native = string(e.state.Status)
		if n := states.Of(x.Native); n.State == adapters.Ended && n.Outcome != "" {
			x.Outcome, x.Reason, x.Code = n.Outcome, n.Reason, max(e.code, 1)
			return x
		}
	}
	oom := e.state != nil && e.state.OOMKilled || e.use.oomKills > 0 ||
		// Podman never tells: an end by SIGKILL at the limit is one for want of memory.
		e.code == 128+int(syscall.SIGKILL) && e.killed == "" && e.limit > 0 && e.use.peak/15*16 >= e.limit
	switch {
	case e.killed != "":
		x.Outcome, x.Reason = pcm.OutcomeSeller, "its container was killed through the engine (signal "+e.killed+"), not by this node: the engine was shut down, or somebody did it by hand"
	case e.code == 0:
	case oom:
		x.Outcome, x.Reason = pcm.OutcomeMemory, fmt.Sprintf("used more than its %s of memory", e.limit)
	case e.blind > 0 && (e.code == 128+int(syscall.SIGKILL) || e.code == 128+int(syscall.SIGTERM) || e.code == 255):
		x.Outcome, x.Reason = pcm.OutcomeSeller, fmt.Sprintf("its container was killed while the container engine was away for %s: the engine was restarted, or somebody killed it", e.blind.Round(time.Millisecond))
	case e.code == 127:
		x.Outcome, x.Reason = pcm.OutcomeFailed, "exit code 127: its program, or one that it called, was not found in the image"
	case e.code == 126:
		x.Outcome, x.Reason = pcm.OutcomeFailed, "exit code 126: its program can't be run in the image"
	case e.code > 128 && e.code < 128+65:
		x.Outcome, x.Reason = pcm.OutcomeFailed, fmt.Sprintf("ended by signal %d (%s)", e.code-128, syscall.Signal(e.code-128))
	default:
		x.Outcome, x.Reason = pcm.OutcomeFailed, fmt.Sprintf("exit code %d", e.code)
	}
	return x
}

func seller(format string, args ...any) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: fmt.Sprintf(format, args...)}
}

func failed(code int, format string, args ...any) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: code, Reason: fmt.Sprintf(format, args...)}
}

// cutShort is the end of a task that the supervisor ends; its verdict says why.
func cutShort() supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL)}
}

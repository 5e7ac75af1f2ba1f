package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Finding is one thing that decides how well this machine keeps tasks in.
type Finding struct {
	What        string // "bubblewrap", "landlock", "namespaces", "control groups", "sandbox"
	OK          bool
	State       string // how it is, and why
	Consequence string // what is weaker for that; "" if nothing
	Remedy      string // what to do about it; "" if nothing
}

// Probe tries out what the process adapter would use on this machine, as the
// user who calls it. It leaves nothing behind.
func Probe(ctx context.Context) ([]Finding, error) {
	dir, err := os.MkdirTemp("", "pcm-probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cfg := RunnerConfig{Dir: filepath.Join(dir, "tasks"), MaxPIDs: 64}
	var all []Finding
	add := func(f Finding) { all = append(all, f) }

	bwrap, err := findBubblewrap(cfg)
	if err == nil {
		add(Finding{What: "bubblewrap", OK: true, State: "works"})
	} else {
		add(Finding{What: "bubblewrap", State: "does not work: " + err.Error(), Consequence: "the sandbox is built by the kernel's own means, if those work",
			Remedy: "apt-get install bubblewrap, or the like; if it is installed, allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"})
	}
	if ctx.Err() != nil {
		return all, context.Cause(ctx)
	}
	locked, lerr := findLandlock(cfg)
	switch abi, _ := landlock.LandlockGetABIVersion(); {
	case lerr != nil:
		add(Finding{What: "landlock", State: "does not work: " + lerr.Error(), Consequence: "there is no second choice of sandbox", Remedy: "use a kernel of version 5.13 or later, with landlock in its lsm= list"})
	default:
		add(Finding{What: "landlock", OK: true, State: fmt.Sprintf("works, version %d", abi)})
		if locked.namespaces() {
			add(Finding{What: "namespaces", OK: true, State: "can be made by this user"})
		} else {
			add(Finding{What: "namespaces", State: "can't be made: " + locked.unspaced.Error(),
				Consequence: "without bubblewrap, tasks see names of the host's files and processes, though they can open and signal only their own",
				Remedy:      "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"})
		}
	}
	if ctx.Err() != nil {
		return all, context.Cause(ctx)
	}
	limits, gerr := findCgroups(dir)
	if gerr == nil {
		defer limits.close()
		f := Finding{What: "control groups", OK: true, State: "version " + strings.TrimPrefix(limits.name(), "cgroup")}
		if missing := limits.missing(); len(missing) > 0 {
			f.OK, f.State = false, f.State+", without "+strings.Join(missing, ", ")
			f.Consequence, f.Remedy = "what those bound is not bounded", "delegate them to this user: Delegate=yes in the systemd unit"
		}
		add(f)
	} else {
		add(Finding{What: "control groups", State: "can't be used: " + gerr.Error(),
			Consequence: "memory is bounded for each process by itself (rlimit), processor time and, outside of landlock's namespaces, the number of processes not at all; use is what the main process waited for",
			Remedy:      "run pcm as a service with Delegate=yes (configs/pcm.service), or as root"})
	}
	switch {
	case bwrap != nil:
		add(Finding{What: "sandbox", OK: true, State: "tasks run in bubblewrap"})
	case locked != nil && locked.namespaces():
		add(Finding{What: "sandbox", OK: true, State: "tasks run in namespaces of their own, behind Landlock and seccomp"})
	case locked != nil:
		add(Finding{What: "sandbox", OK: true, State: "tasks run behind Landlock and seccomp", Consequence: "they see names of the host's files and processes", Remedy: "see namespaces"})
	default:
		add(Finding{What: "sandbox", State: "none works here", Consequence: "programs are sold to the own account only", Remedy: "see bubblewrap and landlock, or sell WebAssembly"})
	}
	return all, nil
}

package process

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Modes of the supervisor under test: "SANDBOX LIMITS", and what else.
const (
	plain            = "none cgroup"
	plainRlimit      = "none rlimit"
	sandboxed        = "bubblewrap cgroup"
	landlocked1      = "landlock cgroup"
	landlocked2      = "landlock cgroup unspaced"
	landlockedRlimit = "landlock rlimit"
	landlockedLeast  = "landlock rlimit unspaced"
	sandboxedRlimit  = "bubblewrap rlimit"
)

// modes are those that this user can try out on most machines.
var modes = []string{plain, plainRlimit, sandboxed, landlocked1, landlocked2, landlockedRlimit}

func init() {
	if os.Getuid() != 0 { // to whom control groups are seldom delegated
		modes = []string{plainRlimit, sandboxedRlimit, landlockedRlimit, landlockedLeast}
	}
}

func TestMain(m *testing.M) {
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		words := strings.Fields(mode)
		has := func(w string) bool { return slices.Contains(words, w) }
		cfg := RunnerConfig{Dir: dir, Sandbox: words[0], NoCgroup: has("rlimit"), Network: has("network"), noSpaces: has("unspaced")}
		if has("small") {
			cfg.Disk, cfg.MaxPIDs = 8<<20, 48
		}
		if has("gpus") {
			cfg.Devices = madeUp
		}
		r, err := NewRunner(cfg)
		return []supervisor.Runner{r}, err
	})
}

// needs skips loudly what this machine can't do; with bubblewrap in PCM_TEST_REQUIRE
// in the environment it fails instead, so that a skipped sandbox can't go unseen.
func needs(t testing.TB, mode string) {
	t.Helper()
	skip := t.Skip
	if strings.HasPrefix(mode, "bubblewrap") {
		if require.Named("bubblewrap") {
			skip = t.Fatal
		}
		if _, err := exec.LookPath("bwrap"); err != nil {
			skip("BUBBLEWRAP IS NOT INSTALLED: the sandbox is NOT tested here")
		}
	}
	if strings.HasPrefix(mode, "landlock") && kernelLacks() != nil {
		if require.Named("landlock") {
			skip = t.Fatal
		}
		skip("THE SANDBOX BY LANDLOCK CAN'T BE HAD HERE, IT IS NOT TESTED:", kernelLacks())
	}
	if strings.Contains(mode, "cgroup") && limitsHere() == "rlimit" {
		skip("NO CGROUPS CAN BE USED HERE: their limits are NOT tested")
	}
}

var kernelLacks = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "pcm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := findLandlock(RunnerConfig{Dir: dir})
	if err == nil {
		err = l.unspaced
	}
	return err
})

var limitsHere = sync.OnceValue(func() string {
	l, err := findCgroups("/test-of-limits")
	if err != nil {
		return "rlimit"
	}
	l.close()
	return l.name()
})

// script makes a task run the test binary, which the task finds as an input.
func script(t *testing.T, task *adapters.Task, steps ...string) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	task.Command = append([]string{"./task"}, steps...)
	task.Env = map[string]string{adaptertest.EnvTask: "1"}
	task.Inputs = []adapters.Mount{{Path: exe, Target: "task"}}
}

func instance(mode string) func(*testing.T) adaptertest.Instance {
	return func(t *testing.T) adaptertest.Instance {
		box := adaptertest.NewBox(t, mode+" network gpus")
		cfg := Config{Network: true}
		return adaptertest.Instance{
			Adapter: New(cfg, box.Client()), Box: box,
			Reconnect: func() adapters.Adapter { return New(cfg, box.Reconnect()) },
		}
	}
}

func TestConformance(t *testing.T) {
	for _, mode := range modes {
		if os.Getuid() != 0 && !strings.HasPrefix(mode, SandboxLandlock) {
			continue // nothing else than for root
		}
		t.Run(strings.ReplaceAll(mode, " ", "_"), func(t *testing.T) {
			needs(t, mode)
			unsupported := map[string]string{
				"images":             "a process runs programs of this machine, or what it has as input",
				"arrays":             "nothing here has a queue: each task is started when there is room for it",
				"waiting":            "nothing here has a queue: each task is started when there is room for it",
				"back end hung":      "its back end is its supervisor",
				"back end restarted": "its back end is its supervisor",
			}
			if strings.HasPrefix(mode, "none") {
				unsupported["no network"] = "without a sandbox tasks have the machine's network"
			}
			if strings.HasPrefix(mode, "none") || strings.HasSuffix(mode, "unspaced") {
				unsupported["read-only inputs"] = "without namespaces inputs are copies of the task's own"
			}
			if strings.Contains(mode, "rlimit") {
				if strings.HasPrefix(mode, "bubblewrap") {
					unsupported["use of CPU"] = "without control groups, what bubblewrap did not wait for is not counted"
					unsupported["use of memory"] = unsupported["use of CPU"]
				}
				unsupported["out of memory"] = "an allocation over an rlimit fails, and each program says that in its own way"
			}
			adaptertest.Run(t, adaptertest.Subject{
				Name: "process (" + mode + ")",
				New:  instance(mode), Script: script, Unsupported: unsupported,
				Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
				GPU:     func(_ *testing.T, t *adapters.Task) { t.Resources.GPU = 1 },
			})
		})
	}
}

// testPatience bounds one test.
const testPatience = time.Minute

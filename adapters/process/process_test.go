package process

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Modes of the supervisor under test: "SANDBOX LIMITS".
const (
	plain       = "none cgroup"
	plainRlimit = "none rlimit"
	sandboxed   = "bubblewrap cgroup"
)

func TestMain(m *testing.M) {
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		sandbox, limits, _ := strings.Cut(mode, " ")
		r, err := NewRunner(RunnerConfig{Dir: dir, Sandbox: sandbox, NoCgroup: limits == "rlimit"})
		return []supervisor.Runner{r}, err
	})
}

// needs skips loudly what this machine can't do; with bubblewrap in PCM_TEST_REQUIRE
// in the environment it fails instead, so that a skipped sandbox can't go unseen.
func needs(t testing.TB, mode string) {
	t.Helper()
	skip := t.Skip
	if strings.HasPrefix(mode, "bubblewrap") {
		if strings.Contains(os.Getenv("PCM_TEST_REQUIRE"), "bubblewrap") {
			skip = t.Fatal
		}
		if _, err := exec.LookPath("bwrap"); err != nil {
			skip("BUBBLEWRAP IS NOT INSTALLED: the sandbox is NOT tested here")
		}
	}
	if strings.HasSuffix(mode, "cgroup") && limitsHere() == "rlimit" {
		skip("NO CGROUPS CAN BE USED HERE: their limits are NOT tested")
	}
}

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
		box := adaptertest.NewBox(t, mode)
		return adaptertest.Instance{
			Adapter:   New(Config{}, box.Client()),
			Reconnect: func() adapters.Adapter { return New(Config{}, box.Reconnect()) },
			Hang:      box.Hang,
		}
	}
}

func TestConformance(t *testing.T) {
	for _, mode := range []string{plain, plainRlimit, sandboxed} {
		t.Run(strings.ReplaceAll(mode, " ", "_"), func(t *testing.T) {
			needs(t, mode)
			adaptertest.Run(t, adaptertest.Subject{
				New: instance(mode), Script: script, Signals: true, Links: true, Memory: mode != plainRlimit,
				Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
			})
		})
	}
}

package container

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// onEach runs a test on Docker and, in the long form, on Podman.
func onEach(t *testing.T, docker func(context.Context) (*server.Engine, error), test func(x *trial)) {
	t.Parallel()
	for name, start := range map[string]func(context.Context) (*server.Engine, error){"docker": docker, "podman": server.Podman} {
		t.Run(name, func(t *testing.T) {
			if name == "podman" && !require.Named(name) {
				t.Skip("PODMAN IS NOT TESTED HERE: PCM_TEST_REQUIRE does not name it")
			}
			t.Parallel()
			test(newTrial(t, newRig(t, name, start)))
		})
	}
}

// Both engines' words are passed on while a task runs, and both tell an exit code
// from an end for want of memory, and that from other ends by SIGKILL.
func TestEnds(t *testing.T) {
	onEach(t, mortal, func(x *trial) {
		three, hungry, shot := x.start(x.task("exit", "3")), x.task("alloc", "400"), x.task("sleep", "5m")
		hungry.Resources.Memory = 64 << 20
		x.start(hungry)
		x.start(shot)
		if st := x.wait(shot.Key, adapters.Running); st.Native != "running" {
			x.Errorf("the engine's word for what runs is given as %q", st.Native)
		}
		c, err := x.API.ContainerInspect(x.ctx, nameOf(shot.Key), client.ContainerInspectOptions{})
		if err != nil || c.Container.State.Pid < 2 {
			x.Fatalf("%+v, %v", c.Container.State, err)
		}
		if err := syscall.Kill(c.Container.State.Pid, syscall.SIGKILL); err != nil {
			x.Fatal(err)
		}
		for k, want := range map[adapters.Key]struct {
			outcome pcm.Outcome
			code    int
			reason  string
		}{
			three:      {pcm.OutcomeFailed, 3, "exit code 3"},
			hungry.Key: {pcm.OutcomeMemory, 137, "64MiB of memory"},
			shot.Key:   {pcm.OutcomeFailed, 137, "signal 9"},
		} {
			st := x.wait(k, adapters.Ended)
			x.expect(st, want.outcome, want.reason)
			if st.ExitCode != want.code || st.Native != "exited" && st.Native != "stopped" {
				x.Errorf("exit code %d, not %d; the engine's word is %q", st.ExitCode, want.code, st.Native)
			}
		}
	})
}

// More than are started at once wait for their turn, and all come to their end.
func TestBurst(t *testing.T) {
	onEach(t, mortal, func(x *trial) {
		n := startsAtOnce + 12
		ch, err := x.ins.Adapter.Watch(x.ctx)
		if err != nil {
			x.Fatal(err)
		}
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if err := x.ins.Adapter.Start(x.ctx, x.task("exit", "4")); err != nil {
					x.Error(err)
				}
			})
		}
		wg.Wait()
		waited := false
		for left := n; left > 0; {
			st, ok := <-ch
			if !ok {
				x.Fatalf("%d of %d have not ended", left, n)
			}
			waited = waited || strings.Contains(st.Reason, "busy starting others")
			if st.State == adapters.Ended {
				left--
				if st.ExitCode != 4 {
					x.Errorf("ended as %+v", st)
				}
			}
		}
		if !waited {
			x.Errorf("none of %d had to wait for the engine", n)
		}
	})
}

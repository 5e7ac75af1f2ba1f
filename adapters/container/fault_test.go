package container

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

func lively(ctx context.Context) (*server.Engine, error) { return server.Dockerd(ctx, true) }
func mortal(ctx context.Context) (*server.Engine, error) { return server.Dockerd(ctx, false) }

// trial is one adapter on an engine, for tests of what only containers have.
type trial struct {
	*testing.T
	*rig
	ins adaptertest.Instance
	ctx context.Context
}

func newTrial(t *testing.T, r *rig) *trial {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	return &trial{t, r, r.instance(t), ctx}
}

func (t *trial) start(task adapters.Task) adapters.Key {
	t.Helper()
	if err := t.ins.Adapter.Start(t.ctx, task); err != nil {
		t.Fatal(err)
	}
	return task.Key
}

func (t *trial) task(steps ...string) adapters.Task {
	task := adaptertest.NewTask()
	t.script(t.T, &task, steps...)
	return task
}

func (t *trial) wait(k adapters.Key, s adapters.State) adapters.Status {
	t.Helper()
	st, err := adaptertest.Wait(t.ctx, t.ins.Adapter, k, s)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// until polls for what nothing tells of.
func (t *trial) until(what string, f func() bool) {
	t.Helper()
	for !f() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (t *trial) expect(st adapters.Status, outcome pcm.Outcome, reason string) {
	t.Helper()
	if st.Outcome != outcome || !strings.Contains(st.Reason, reason) {
		t.Errorf("ended as %s, exit code %d, %q; expected %s, %q", st.Outcome, st.ExitCode, st.Reason, outcome, reason)
	}
}

// Docker kills what runs when it is shut down, and what ran when it comes back
// after a crash. Neither is the task's fault, not even where the task makes a
// good end of it.
func TestEngineKills(t *testing.T) {
	t.Parallel()
	x := newTrial(t, newRig(t, "docker", mortal))
	polite := x.start(x.task("term", "sleep", "5m"))
	deaf := x.start(x.task("deaf", "sleep", "5m"))
	x.wait(polite, adapters.Running)
	x.wait(deaf, adapters.Running)
	if err := x.Shutdown(x.ctx); err != nil {
		t.Fatal(err)
	}
	for _, k := range []adapters.Key{polite, deaf} {
		x.expect(x.wait(k, adapters.Ended), pcm.OutcomeSeller, "engine")
	}
	k := x.start(x.task("sleep", "5m"))
	x.wait(k, adapters.Running)
	if err := x.Restart(x.ctx); err != nil {
		t.Fatal(err)
	}
	x.expect(x.wait(k, adapters.Ended), pcm.OutcomeSeller, "engine")
	if n := x.Starts(nameOf(k)); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	x.until("all containers are removed", func() bool {
		all, err := x.API.ContainerList(x.ctx, client.ContainerListOptions{All: true})
		return err == nil && len(all.Items) == 0
	})
}

// Where the operator has live-restore on, what runs outlives a crash of Docker,
// with all that it prints. What it prints and ends before the engine is back may be
// lost there: that end doesn't count. Podman loses nothing.
func TestOutlivesEngine(t *testing.T) { onEach(t, lively, testOutlivesEngine) }

func testOutlivesEngine(x *trial) {
	on := x.start(x.task("out", "ready", "ticks", "12", "1s", "out", "went on"))
	over, failed := x.start(x.task("await", "go", "out", "over")), x.start(x.task("await", "go", "exit", "3"))
	for _, k := range []adapters.Key{on, over, failed} {
		x.wait(k, adapters.Running)
	}
	x.Crash()
	for _, k := range []adapters.Key{over, failed} {
		if err := os.WriteFile(filepath.Join(x.ins.Box.Dir, "tasks", k.String(), "work", "go"), nil, 0o644); err != nil {
			x.Fatal(err)
		}
		x.until("it has ended", func() bool { return !alive(k) })
	}
	if err := x.Restart(x.ctx); err != nil {
		x.Fatal(err)
	}
	if st := x.wait(over, adapters.Ended); strings.Contains(x.Name(), "podman") {
		x.expect(st, pcm.OutcomeOK, "")
		if out := x.stdout(over); out != "over\n" {
			x.Errorf("stdout %q", out)
		}
	} else {
		x.expect(st, pcm.OutcomeSeller, "output may be lost")
	}
	if st := x.wait(failed, adapters.Ended); st.Outcome != pcm.OutcomeFailed || st.ExitCode != 3 {
		x.Errorf("ended as %+v", st)
	}
	x.expect(x.wait(on, adapters.Ended), pcm.OutcomeOK, "")
	if out := x.stdout(on); !strings.HasPrefix(out, "ready\ntick 1\n") || strings.Count(out, "tick") != 12 || !strings.HasSuffix(out, "went on\n") {
		x.Errorf("stdout %q", out)
	}
	for _, k := range []adapters.Key{on, over, failed} {
		if n := x.Starts(nameOf(k)); n != 1 {
			x.Errorf("attempt %s was started %d times", k, n)
		}
	}
}

// alive tells whether a process of the attempt is alive on this machine.
func alive(k adapters.Key) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	return slices.ContainsFunc(all, func(name string) bool {
		data, _ := os.ReadFile(name)
		return strings.Contains(string(data), "PCM_ATTEMPT="+k.String()+"\x00")
	})
}

// A lease holds though the engine hangs: the processes are ended without it, and
// the container is removed when it can be.
func TestHungEngineFences(t *testing.T) { onEach(t, mortal, testHungEngineFences) }

func testHungEngineFences(x *trial) {
	task := x.task("out", "ready", "sleep", "5m")
	task.Deadline = adapters.Now().Add(20 * time.Second)
	k := x.start(task)
	x.wait(k, adapters.Running)
	c, err := x.API.ContainerInspect(x.ctx, nameOf(k), client.ContainerInspectOptions{})
	if err != nil || c.Container.State.Pid < 2 {
		x.Fatalf("%+v, %v", c.Container.State, err)
	}
	resume := x.Hang()
	defer resume()
	x.expect(x.wait(k, adapters.Ended), pcm.OutcomeSeller, "lease ended")
	if inContainer(c.Container.State.Pid, c.Container.ID) {
		x.Error("its process runs on")
	}
	resume()
	x.until("its container is removed", func() bool {
		_, err := x.API.ContainerInspect(x.ctx, nameOf(k), client.ContainerInspectOptions{})
		return errdefs.IsNotFound(err)
	})
}

// What others do to a container through the engine is not the task's fault.
func TestMeddling(t *testing.T) { onEach(t, mortal, testMeddling) }

func testMeddling(x *trial) {
	removed, killed, paused := x.start(x.task("sleep", "5m")), x.start(x.task("sleep", "5m")), x.start(x.task("sleep", "5m"))
	for _, k := range []adapters.Key{removed, killed, paused} {
		x.wait(k, adapters.Running)
	}
	if _, err := x.API.ContainerKill(x.ctx, nameOf(killed), client.ContainerKillOptions{Signal: "SIGKILL"}); err != nil {
		x.Fatal(err)
	}
	x.expect(x.wait(killed, adapters.Ended), pcm.OutcomeSeller, "killed through the engine")
	if _, err := x.API.ContainerRemove(x.ctx, nameOf(removed), client.ContainerRemoveOptions{Force: true}); err != nil {
		x.Fatal(err)
	}
	x.expect(x.wait(removed, adapters.Ended), pcm.OutcomeSeller, "engine")
	if _, err := x.API.ContainerPause(x.ctx, nameOf(paused), client.ContainerPauseOptions{}); err != nil {
		x.Fatal(err)
	}
	x.until("it is suspended", func() bool {
		all, err := x.ins.Adapter.List(x.ctx)
		if err != nil {
			x.Fatal(err)
		}
		for _, st := range all {
			if st.Key == paused {
				return st.State == adapters.Suspended && st.Native == "paused"
			}
		}
		return false
	})
	if err := x.ins.Adapter.Stop(x.ctx, paused, 0, "enough"); err != nil {
		x.Fatal(err)
	}
	x.expect(x.wait(paused, adapters.Ended), pcm.OutcomeStopped, "enough")
}

// A container of that name that is not ours is left alone.
func TestForeignContainer(t *testing.T) {
	t.Parallel()
	x := newTrial(t, newRig(t, "docker", mortal))
	task := x.task("exit", "0")
	res, err := x.API.ContainerCreate(x.ctx, client.ContainerCreateOptions{
		Config: &container.Config{Image: "localhost/pcm-test", Cmd: []string{"x"}, Labels: map[string]string{labelKey: task.Key.String(), labelHome: "another"}}, Name: nameOf(task.Key),
	})
	if err != nil {
		t.Fatal(err)
	}
	x.expect(x.wait(x.start(task), adapters.Ended), pcm.OutcomeSeller, "not this node's")
	if _, err := x.API.ContainerInspect(x.ctx, res.ID, client.ContainerInspectOptions{}); err != nil {
		t.Errorf("what is not ours is gone: %v", err)
	}
	if _, err := x.API.ContainerRemove(x.ctx, res.ID, client.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
}

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// attempt is one attempt in its container.
type attempt struct {
	*Runner
	t       *supervisor.Run
	name    string
	image   string
	nonce   string
	mark    mark
	track   *track
	streams streams
	stop    string // the image's stop signal
	paused  bool
	native  string // the engine's word, as last told
	cut     bool   // the engine has ended, and its output with it
	sampler *sampler
}

// mark stands beside the working folder, for the next supervisor: with it, a
// container that is gone is not taken for one that never was.
type mark struct {
	ID   string           `json:"id"`
	PID  int              `json:"pid,omitempty"` // of its first process
	GPUs []string         `json:"gpus,omitempty"`
	Exit *supervisor.Exit `json:"exit,omitempty"` // written before the container is removed
}

func (a *attempt) markFile() string { return filepath.Join(filepath.Dir(a.t.Work), "container.json") }

func (a *attempt) loadMark() {
	if data, err := os.ReadFile(a.markFile()); err == nil && json.Unmarshal(data, &a.mark) != nil {
		a.mark = mark{} // cut short: the container itself will tell
	}
}

func (a *attempt) saveMark() error {
	data, err := json.Marshal(a.mark)
	if err == nil {
		tmp := a.markFile() + ".new"
		if err = os.WriteFile(tmp, data, 0o600); err == nil {
			err = os.Rename(tmp, a.markFile())
		}
	}
	return err
}

// errStopped is that the task was asked to end before it began.
var errStopped = errors.New("asked to end before it began")

// patient calls the engine until it answers.
func (a *attempt) patient(ctx context.Context, call func(ctx context.Context) error) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		cctx, cancel := bounded(ctx)
		err := call(cctx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil || !away(err):
			return err
		}
		a.t.Report(adapters.Pending, "", a.engine.fault(err).Error())
		select {
		case <-time.After(wait):
		case <-a.t.Stopping:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// give is the end of an attempt that could not begin for want of the engine.
func give(ctx context.Context, err error) supervisor.Exit {
	switch {
	case ctx.Err() != nil:
		return cutShort()
	case errors.Is(err, errStopped):
		return failed(128+int(syscall.SIGTERM), "%v", err)
	}
	return seller("container engine: %s", brief(err))
}

func (a *attempt) inspect(ctx context.Context) (c container.InspectResponse, err error) {
	err = a.patient(ctx, func(ctx context.Context) error {
		res, err := a.engine.ContainerInspect(ctx, a.name, client.ContainerInspectOptions{})
		c = res.Container
		if err == nil && (c.State == nil || c.Config == nil) {
			err = fmt.Errorf("the engine says nothing of the state of container %s", a.name)
		}
		return err
	})
	return c, err
}

// follow follows the container to its end.
func (a *attempt) follow(ctx context.Context) supervisor.Exit {
	stopping, streams := a.t.Stopping, a.streams.done
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return a.killed()
		case <-stopping:
			stopping = nil
			a.terminate(ctx)
			continue
		case <-a.track.wake:
		case <-streams:
			streams = nil
		case <-retry.C:
		}
		cctx, cancel := bounded(ctx)
		res, err := a.engine.ContainerInspect(cctx, a.mark.ID, client.ContainerInspectOptions{})
		cancel()
		switch {
		case ctx.Err() != nil:
			return a.killed()
		case errdefs.IsNotFound(err):
			a.streams.drain(time.Second)
			x := seller("its container was removed from the engine while it ran, and not by this node")
			u := a.used()
			x.CPUMS, x.Memory = u.cpuMS, u.peak
			return x
		case err != nil:
			a.cut = a.cut || streams == nil
			retry.Reset(time.Second) // the engine is away: the task runs on meanwhile
			continue
		}
		s := res.Container.State
		native := states.Of(string(s.Status))
		switch native.State {
		case adapters.Ended:
			if x, ok := a.ended(ctx, s); ok {
				return x
			}
			retry.Reset(time.Second)
			continue
		case adapters.Suspended, adapters.Running:
			a.paused = native.State == adapters.Suspended
			a.tell(native.State, string(s.Status), native.Reason)
		}
		a.watch.seen(a.track)
		if streams == nil { // the engine was away: take the output up again
			if err := a.streams.again(ctx, a.engine, a.mark.ID); err != nil {
				retry.Reset(time.Second)
			} else {
				streams, a.cut = a.streams.done, false
			}
		}
	}
}

// ended makes the attempt's end of the container's. It fails while the engine is away.
func (a *attempt) ended(ctx context.Context, s *container.State) (supervisor.Exit, bool) {
	code := s.ExitCode
	if about, err := a.engine.known(ctx); err != nil || about.name == "podman" { // whose inspect may not know yet
		cctx, cancel := bounded(ctx)
		defer cancel()
		res := a.engine.ContainerWait(cctx, a.mark.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		select {
		case w := <-res.Result:
			code = int(w.StatusCode)
		case err := <-res.Error:
			if !errdefs.IsNotFound(err) {
				return supervisor.Exit{}, false
			}
		case <-cctx.Done():
			return supervisor.Exit{}, false
		}
	}
	if a.cut { // what the engine has kept
		cctx, cancel := bounded(ctx)
		err := a.streams.again(cctx, a.engine, a.mark.ID)
		cancel()
		if err != nil {
			return supervisor.Exit{}, false
		}
	}
	a.streams.drain(5 * time.Second)
	killed, blind := a.watch.fate(a.track)
	x := judge(end{state: s, code: code, killed: killed, blind: blind, use: a.used(), limit: a.t.Resources.Memory})
	// Podman's log is written by a process of the container's own, Docker's by the engine.
	if a.cut && x.Outcome == pcm.OutcomeOK && a.engine.is("docker") {
		x.Outcome, x.Reason = pcm.OutcomeSeller, "it ended while the container engine was being restarted: the last of its output may be lost"
	}
	a.mark.Exit = &x
	if err := a.saveMark(); err != nil {
		a.log.Error("can't note how a container ended", "attempt", a.t.Key.String(), "err", err)
	}
	a.removeContainer()
	return x, true
}

func (a *attempt) used() use {
	u := a.meter.read(a.t.Key)
	if a.sampler != nil {
		u = u.or(a.sampler.end())
		a.sampler = nil
	}
	return u
}

// terminate asks the task to end.
func (a *attempt) terminate(ctx context.Context) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	a.watch.ask(a.track)
	if a.paused {
		a.engine.ContainerUnpause(ctx, a.mark.ID, client.ContainerUnpauseOptions{}) // if that fails, so does the next call
	}
	if _, err := a.engine.ContainerKill(ctx, a.mark.ID, client.ContainerKillOptions{Signal: a.stop}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
		a.log.Warn("can't ask a container to end; it will be killed", "attempt", a.t.Key.String(), "err", err)
	}
}

// killLimit bounds how long the engine is given to kill a container before its
// processes are killed without it.
const killLimit = 5 * time.Second

// killed kills the container and tells what is known of it.
func (a *attempt) killed() supervisor.Exit {
	a.kill()
	a.streams.drain(time.Second)
	x := cutShort()
	u := a.used()
	x.CPUMS, x.Memory = u.cpuMS, u.peak
	a.removeContainer()
	return x
}

// kill ends all processes of the container, with the engine or without it.
func (a *attempt) kill() {
	a.watch.ask(a.track)
	ctx, cancel := context.WithTimeout(context.Background(), killLimit)
	defer cancel()
	_, err := a.engine.ContainerKill(ctx, a.name, client.ContainerKillOptions{Signal: "SIGKILL"})
	if err != nil && !away(err) && !errdefs.IsNotFound(err) { // it has ended, or is paused
		a.engine.ContainerUnpause(ctx, a.name, client.ContainerUnpauseOptions{}) // if that fails, so does the next call
		_, err = a.engine.ContainerKill(ctx, a.name, client.ContainerKillOptions{Signal: "SIGKILL"})
	}
	for wait := 5 * time.Millisecond; err == nil; wait = min(2*wait, 200*time.Millisecond) {
		res, ierr := a.engine.ContainerInspect(ctx, a.name, client.ContainerInspectOptions{})
		if errdefs.IsNotFound(ierr) || ierr == nil && res.Container.State != nil && !res.Container.State.Running {
			return
		}
		select {
		case <-time.After(wait):
		case <-a.track.wake:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
		return // there is none, or it does not run
	}
	a.log.Warn("killing a container's processes without the engine", "attempt", a.t.Key.String(), "err", err)
	a.meter.kill(a.t.Key)
	if a.mark.PID > 1 && inContainer(a.mark.PID, a.mark.ID) {
		syscall.Kill(a.mark.PID, syscall.SIGKILL) // the kernel ends all others of its namespace with it
	}
}

// inContainer tells whether a process is one of the container's.
func inContainer(pid int, id string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && id != "" && strings.Contains(string(data), id)
}

// removeContainer removes it. What can't be removed now, the watcher removes later.
func (a *attempt) removeContainer() {
	if a.mark.ID == "" {
		return
	}
	if a.sampler != nil {
		a.sampler.end()
	}
	a.streams.close()
	ctx, cancel := bounded(context.Background())
	defer cancel()
	if _, err := a.engine.ContainerRemove(ctx, a.mark.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil && !errdefs.IsNotFound(err) {
		a.log.Warn("can't remove a container now", "attempt", a.t.Key.String(), "err", err)
		a.watch.orphan(a.name)
	}
}

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
	cut     bool // the engine has ended, and its output with it
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

// begin sees to it that the task's container runs; else it gives the attempt's end.
func (a *attempt) begin(ctx context.Context) (exit supervisor.Exit, ended bool) {
	var about facts
	if err := a.patient(ctx, func(ctx context.Context) (err error) { about, err = a.engine.known(ctx); return err }); err != nil {
		return give(ctx, err), true
	}
	a.meter.prepare(about)
	if a.t.Again {
		c, err := a.inspect(ctx)
		switch {
		case err == nil:
			return a.adopt(ctx, c)
		case !errdefs.IsNotFound(err):
			return give(ctx, err), true
		case a.mark.ID != "":
			return seller("its container was gone from the engine when this node looked for it again"), true
		}
	}
	if exit, ended := a.create(ctx); ended {
		return exit, true
	}
	return a.start(ctx)
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

// create makes the container.
func (a *attempt) create(ctx context.Context) (exit supervisor.Exit, ended bool) {
	if err := a.owner.lay(a.t); err != nil {
		return seller("can't prepare its working folder: %v", err), true
	}
	var img imageFacts
	err := a.patientPull(ctx, &img, &exit)
	if err != nil {
		return give(ctx, err), true
	}
	if exit.Outcome != "" {
		return exit, true
	}
	a.stop = img.stop
	gpus, err := a.gpus.take(ctx, int(a.t.Resources.GPU), func() { a.t.Report(adapters.Pending, "", "waits for a free accelerator") })
	if err != nil {
		return give(ctx, err), true
	}
	a.mark.GPUs = gpus
	if err := a.saveMark(); err != nil {
		return seller("can't note which accelerators it has: %v", err), true
	}
	opts, err := a.options(ctx, a.t, img, a.image, a.nonce, gpus)
	if err != nil {
		return give(ctx, err), true
	}
	err = a.patient(ctx, func(ctx context.Context) error {
		ctx, cancel := bounded(context.WithoutCancel(ctx)) // once asked for, it is made whether one waits for that or not
		defer cancel()
		res, err := a.engine.ContainerCreate(ctx, opts)
		if errdefs.IsConflict(err) {
			// Made by us in a call whose answer was lost, or left of an attempt that was forgotten.
			c, ierr := a.engine.ContainerInspect(ctx, a.name, client.ContainerInspectOptions{})
			if ierr != nil {
				return ierr
			}
			if l := c.Container.Config; l != nil && l.Labels[labelRun] == a.nonce {
				a.mark.ID = c.Container.ID
				return nil
			}
			if _, err := a.engine.ContainerRemove(ctx, a.name, client.ContainerRemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			res, err = a.engine.ContainerCreate(ctx, opts)
		}
		if err == nil {
			a.mark.ID = res.ID
		}
		return err
	})
	switch {
	case err == nil:
		return exit, false
	case ctx.Err() != nil || errors.Is(err, errStopped):
		return give(ctx, err), true
	}
	return createExit(a.t, a.image, err), true
}

// patientPull sees to it that the image is here, however long the engine is away.
func (a *attempt) patientPull(ctx context.Context, img *imageFacts, exit *supervisor.Exit) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		l, x, err := a.images.ready(ctx, a.image, a.t.Report)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case x != nil:
			*exit = *x
			return nil
		case err == nil:
			*img = l
			return nil
		case !away(err):
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

// start starts the container, at most once however often it is called.
func (a *attempt) start(ctx context.Context) (exit supervisor.Exit, ended bool) {
	if err := a.saveMark(); err != nil {
		return seller("can't note which container it has: %v", err), true
	}
	select {
	case <-a.t.Stopping:
		return give(ctx, errStopped), true
	default:
	}
	// Podman already makes ready what it attaches to. Why that fails, the start tells.
	unattached := a.patient(ctx, func(ctx context.Context) error { return a.streams.attach(ctx, a.engine, a.mark.ID) })
	if ctx.Err() != nil || errors.Is(unattached, errStopped) {
		return give(ctx, unattached), true
	}
	first := true
	err := a.patient(ctx, func(ctx context.Context) error {
		ctx, cancel := bounded(context.WithoutCancel(ctx)) // likewise
		defer cancel()
		if !first { // the answer to the last call was lost: a second start would run what has ended once more
			res, err := a.engine.ContainerInspect(ctx, a.mark.ID, client.ContainerInspectOptions{})
			if err != nil || began(res.Container.State) {
				return err
			}
		}
		first = false
		_, err := a.engine.ContainerStart(ctx, a.mark.ID, client.ContainerStartOptions{})
		return err
	})
	switch {
	case ctx.Err() != nil:
		return a.killed(), true
	case errors.Is(err, errStopped):
		a.kill()
		return give(ctx, err), true
	case err != nil:
		// An engine that crashed amid the start may not know what it has started.
		a.meter.kill(a.t.Key)
		return startExit(a.t, a.image, err), true
	}
	if unattached != nil {
		if err := a.patient(ctx, func(ctx context.Context) error { return a.streams.again(ctx, a.engine, a.mark.ID) }); err != nil {
			a.kill()
			return give(ctx, err), true
		}
	}
	a.running(ctx)
	return exit, false
}

// began tells whether a container was ever started.
func began(s *container.State) bool {
	if s == nil {
		return false
	}
	at, err := time.Parse(time.RFC3339Nano, s.StartedAt)
	return s.Running || s.Pid > 0 || err == nil && at.Year() > 1970
}

// running notes that the container runs.
func (a *attempt) running(ctx context.Context) {
	a.t.Started()
	a.sampler = a.meter.sample(a.t.Key, a.mark.ID, a.t.Used)
	ictx, cancel := bounded(ctx)
	defer cancel()
	// Its process is how it is ended when the engine hangs. Without it there is the cgroup.
	if res, err := a.engine.ContainerInspect(ictx, a.mark.ID, client.ContainerInspectOptions{}); err == nil && res.Container.State != nil && res.Container.State.Pid > 0 {
		a.mark.PID = res.Container.State.Pid
		if err := a.saveMark(); err != nil {
			a.log.Warn("can't note a container's process", "attempt", a.t.Key.String(), "err", err)
		}
	}
}

// adopt takes up a container that an earlier supervisor made.
func (a *attempt) adopt(ctx context.Context, c container.InspectResponse) (exit supervisor.Exit, ended bool) {
	if c.Config.Labels[labelKey] != a.t.Key.String() || c.Config.Labels[labelHome] != a.home {
		return seller("the engine has a container %s that is not this node's", a.name), true
	}
	a.mark.ID = c.ID
	a.stop = c.Config.StopSignal
	if !began(c.State) {
		return a.start(ctx)
	}
	err := a.patient(ctx, func(ctx context.Context) error { return a.streams.again(ctx, a.engine, a.mark.ID) })
	if err != nil && ctx.Err() == nil {
		return give(ctx, err), true
	}
	a.running(ctx)
	return exit, false
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
			if paused := native.State == adapters.Suspended; paused != a.paused {
				a.paused = paused
				a.t.Report(native.State, string(s.Status), native.Reason)
			}
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

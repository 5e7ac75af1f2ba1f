package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

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
	img, exit, ended := a.equip(ctx)
	if ended {
		return exit, true
	}
	done, err := a.turn(ctx)
	if err != nil {
		return give(ctx, err), true
	}
	defer done()
	if exit, ended := a.create(ctx, img); ended {
		return exit, true
	}
	return a.start(ctx)
}

// turn waits until the container may be made and started. The caller says when
// that is done.
func (a *attempt) turn(ctx context.Context) (done func(), err error) {
	done = func() { <-a.engine.turns }
	select {
	case a.engine.turns <- struct{}{}:
		return done, nil
	default:
	}
	a.t.Report(adapters.Pending, "", "waits for the container engine, which is busy starting others")
	select {
	case a.engine.turns <- struct{}{}:
		return done, nil
	case <-a.t.Stopping:
		return nil, errStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// equip sees to it that all is there that the container needs.
func (a *attempt) equip(ctx context.Context) (img imageFacts, exit supervisor.Exit, ended bool) {
	if err := a.owner.lay(a.t); err != nil {
		return img, seller("can't prepare its working folder: %v", err), true
	}
	err := a.patientPull(ctx, &img, &exit)
	if err != nil {
		return img, give(ctx, err), true
	}
	if exit.Outcome != "" {
		return img, exit, true
	}
	a.stop = img.stop
	gpus, err := a.gpus.take(ctx, int(a.t.Resources.GPU), func() { a.t.Report(adapters.Pending, "", "waits for a free accelerator") })
	if err != nil {
		return img, give(ctx, err), true
	}
	a.mark.GPUs = gpus
	if err := a.saveMark(); err != nil {
		return img, seller("can't note which accelerators it has: %v", err), true
	}
	return img, exit, false
}

// create makes the container.
func (a *attempt) create(ctx context.Context, img imageFacts) (exit supervisor.Exit, ended bool) {
	opts, err := a.options(ctx, a.t, img, a.image, a.nonce, a.mark.GPUs)
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
			l := c.Container.Config
			if l == nil || l.Labels[labelHome] != a.home {
				return fmt.Errorf("the engine has a container %s that is not this node's", a.name)
			}
			if l.Labels[labelRun] == a.nonce {
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
	a.tell(adapters.Running, "running", "")
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

// tell tells where the container stands, in the engine's own word.
func (a *attempt) tell(state adapters.State, native, reason string) {
	if native != a.native {
		a.native = native
		a.t.Report(state, native, reason)
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
		done, err := a.turn(ctx)
		if err != nil {
			return give(ctx, err), true
		}
		defer done()
		return a.start(ctx)
	}
	err := a.patient(ctx, func(ctx context.Context) error { return a.streams.again(ctx, a.engine, a.mark.ID) })
	if err != nil && ctx.Err() == nil {
		return give(ctx, err), true
	}
	a.running(ctx)
	return exit, false
}

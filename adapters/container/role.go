package container

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// running finds the container of an attempt that runs.
func (a *Adapter) running(ctx context.Context, k adapters.Key) (container.InspectResponse, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	res, err := a.engine.ContainerInspect(ctx, nameOf(k), client.ContainerInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return res.Container, pcm.Errorf(pcm.NotFound, "attempt %s has no container here: it has ended, or has yet to begin", k)
	case err != nil:
		return res.Container, a.engine.fault(err)
	case res.Container.State == nil || !res.Container.State.Running:
		return res.Container, pcm.Errorf(pcm.Conflict, "attempt %s does not run now", k)
	}
	return res.Container, nil
}

// Suspend implements adapters.Suspender.
func (a *Adapter) Suspend(ctx context.Context, k adapters.Key) error { return a.pause(ctx, k, true) }

// Resume implements adapters.Suspender.
func (a *Adapter) Resume(ctx context.Context, k adapters.Key) error { return a.pause(ctx, k, false) }

func (a *Adapter) pause(ctx context.Context, k adapters.Key, pause bool) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	c, err := a.running(ctx, k)
	if err != nil || c.State.Paused == pause {
		return err
	}
	if pause {
		_, err = a.engine.ContainerPause(ctx, c.ID, client.ContainerPauseOptions{})
	} else {
		_, err = a.engine.ContainerUnpause(ctx, c.ID, client.ContainerUnpauseOptions{})
	}
	if err != nil {
		if now, ierr := a.running(ctx, k); ierr == nil && now.State.Paused == pause {
			return nil // somebody else was faster
		}
	}
	return a.engine.fault(err)
}

// Exec implements adapters.Execer.
func (a *Adapter) Exec(ctx context.Context, k adapters.Key, x adapters.Exec) (int, error) {
	if len(x.Command) == 0 {
		return 0, pcm.Errorf(pcm.Invalid, "no command to run beside attempt %s", k)
	}
	c, err := a.running(ctx, k)
	if err != nil {
		return 0, err
	}
	if c.State.Paused {
		return 0, pcm.Errorf(pcm.Conflict, "attempt %s is suspended: resume it first", k)
	}
	size := client.ConsoleSize{}
	if x.TTY && x.Rows > 0 && x.Cols > 0 {
		size = client.ConsoleSize{Height: uint(x.Rows), Width: uint(x.Cols)}
	}
	setup, cancel := bounded(ctx)
	defer cancel()
	made, err := a.engine.ExecCreate(setup, c.ID, client.ExecCreateOptions{
		Cmd: x.Command, TTY: x.TTY, User: a.owner.String(), WorkingDir: workFolder, ConsoleSize: size,
		AttachStdin: x.Stdin != nil, AttachStdout: true, AttachStderr: !x.TTY,
	})
	if err != nil {
		return 0, a.engine.fault(err)
	}
	res, err := a.engine.ExecAttach(setup, made.ID, client.ExecAttachOptions{TTY: x.TTY, ConsoleSize: size})
	if err != nil {
		return 0, a.engine.fault(err)
	}
	defer res.Close()

	copied := make(chan error, 1)
	go func() {
		var err error
		stdout, stderr := sure(x.Stdout), sure(x.Stderr)
		if x.TTY {
			_, err = io.Copy(stdout, res.Reader)
		} else {
			_, err = stdcopy.StdCopy(stdout, stderr, res.Reader)
		}
		copied <- err
	}()
	if x.Stdin != nil {
		go func() {
			io.Copy(res.Conn, x.Stdin) // its end, or that of the command
			res.CloseWrite()
		}()
	}
	if x.TTY && x.Rows > 0 && x.Cols > 0 {
		a.engine.ExecResize(setup, made.ID, client.ExecResizeOptions{Height: uint(x.Rows), Width: uint(x.Cols)}) // engines before API 1.42 take no size at the start
	}
	resize := x.Resize
	for {
		select {
		case s, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			rctx, cancel := bounded(ctx)
			a.engine.ExecResize(rctx, made.ID, client.ExecResizeOptions{Height: uint(s[0]), Width: uint(s[1])}) // a terminal of the wrong size is no reason to end
			cancel()
		case <-copied:
			return a.execCode(ctx, made.ID)
		case <-ctx.Done():
			a.endExec(made.ID, c.ID)
			return 0, pcm.Errorf(pcm.Unavailable, "the command beside attempt %s was ended: %w", k, context.Cause(ctx))
		}
	}
}

func sure(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// execCode waits for the exit code, which may come a moment after the output's end.
func (a *Adapter) execCode(ctx context.Context, id string) (int, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		res, err := a.engine.ExecInspect(ctx, id, client.ExecInspectOptions{})
		if err != nil {
			return 0, a.engine.fault(err)
		}
		if !res.Running {
			return res.ExitCode, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, a.engine.fault(ctx.Err())
		}
	}
}

// endExec kills a command. The API has no call for that: where its process can't
// be reached from here, it ends with the task.
func (a *Adapter) endExec(exec, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), killLimit)
	defer cancel()
	if res, err := a.engine.ExecInspect(ctx, exec, client.ExecInspectOptions{}); err == nil && res.Running && res.PID > 1 && inContainer(res.PID, id) {
		syscall.Kill(res.PID, syscall.SIGKILL)
	}
}

// canEnter tells whether this process may enter the network of a container.
func canEnter() bool { return os.Geteuid() == 0 }

// Dial implements adapters.Dialer. Services need no network for this: they listen
// on their container's loopback, and the connection is made from inside.
func (a *Adapter) Dial(ctx context.Context, k adapters.Key, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, pcm.Errorf(pcm.Invalid, "%d is not a port", port)
	}
	c, err := a.running(ctx, k)
	if err != nil {
		return nil, err
	}
	if !canEnter() {
		return nil, pcm.Errorf(pcm.Refused, "this node is not root, and can't enter the network of its containers")
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.State.Pid))
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't enter the network of attempt %s: %w", k, err)
	}
	defer ns.Close()
	if !inContainer(c.State.Pid, c.ID) {
		return nil, pcm.Errorf(pcm.Conflict, "attempt %s does not run now", k)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	got := make(chan result, 1)
	ctx, cancel := bounded(ctx)
	defer cancel()
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			got <- result{nil, fmt.Errorf("can't enter its network: %w", err)}
			return
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		got <- result{conn, err}
	}()
	r := <-got // bounded by ctx
	if r.err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "port %d of attempt %s: %w", port, k, r.err)
	}
	return r.conn, nil
}

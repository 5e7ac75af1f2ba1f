package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// lingering is how long streams that the command has left to others are read on.
const lingering = 2 * time.Second

// Exec implements adapters.Execer: the command runs in the task's sandbox and
// control groups, with its environment.
func (a *Adapter) Exec(ctx context.Context, k adapters.Key, x adapters.Exec) (int, error) {
	if len(x.Command) == 0 || x.Command[0] == "" {
		return 0, pcm.Errorf(pcm.Invalid, "there is no command to run beside attempt %s", k)
	}
	leave, err := a.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	p, target, err := a.at(k)
	if err != nil {
		return 0, err
	}
	if p.halted() {
		return 0, pcm.Errorf(pcm.Conflict, "attempt %s is suspended: resume it first", k)
	}
	c := p.Cell
	c.Command, c.Terminal, c.Groups, c.Target, c.Since = x.Command, x.TTY, p.Groups, target, startOf(target)
	in, err := c.command(ctx)
	if err != nil {
		return 0, pcm.Errorf(pcm.Unavailable, "can't run a command beside attempt %s: %w", k, err)
	}
	defer in.close()
	if x.TTY {
		err = in.terminal(ctx, x)
	} else {
		err = in.pipes(x)
	}
	if ctx.Err() != nil {
		return 128 + int(syscall.SIGKILL), pcm.Errorf(pcm.Unavailable, "the command beside attempt %s was ended: %w", k, context.Cause(ctx))
	}
	if f := in.fault(); f.Code != 0 {
		w := x.Stderr
		if x.TTY || w == nil {
			w = x.Stdout
		}
		if w != nil {
			io.WriteString(w, f.Reason+"\n")
		}
		return f.Code, nil
	} else if f.Reason != "" {
		return 0, pcm.Errorf(pcm.Conflict, "can't run a command beside attempt %s: %s", k, f.Reason)
	}
	if ee := (*exec.ExitError)(nil); err == nil || errors.As(err, &ee) || errors.Is(err, exec.ErrWaitDelay) {
		ws := in.ProcessState.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
	return 0, pcm.Errorf(pcm.Unavailable, "can't run a command beside attempt %s: %w", k, err)
}

// inner is a run of this program's inner side from outside.
type inner struct {
	*exec.Cmd
	report *os.File
	passed []*os.File
}

// command prepares to enter the cell.
func (c cell) command(ctx context.Context, pass ...*os.File) (*inner, error) {
	role := "enter"
	if !c.Spaced {
		role = "join"
	}
	settings, err := c.file()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		settings.Close()
		return nil, err
	}
	in := &inner{Cmd: exec.CommandContext(ctx, "/proc/self/exe"), report: r, passed: append([]*os.File{w, settings}, pass...)}
	in.Args, in.Env, in.Dir, in.ExtraFiles = []string{cellArg, role}, []string{}, "/", in.passed
	in.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: 0}
	in.WaitDelay = lingering
	return in, nil
}

func (in *inner) started() {
	for _, f := range in.passed {
		f.Close()
	}
	in.passed = nil
}

func (in *inner) close() { in.started(); in.report.Close() }

// fault is what kept the command from being run.
func (in *inner) fault() (f cellFault) {
	in.report.SetReadDeadline(soon())
	data, _ := io.ReadAll(io.LimitReader(in.report, 4096))
	if i := bytes.IndexByte(data, '{'); i >= 0 {
		json.Unmarshal(data[i:], &f)
	}
	return f
}

// pipes runs the command with three streams. What stands in Stdin when it ends is left there.
func (in *inner) pipes(x adapters.Exec) error {
	in.Stdout, in.Stderr = x.Stdout, x.Stderr
	if !in.spaced() {
		in.SysProcAttr.Setsid = true
	}
	var stdin io.WriteCloser
	if x.Stdin != nil {
		var err error
		if stdin, err = in.StdinPipe(); err != nil {
			return err
		}
	}
	if err := in.Start(); err != nil {
		return err
	}
	in.started()
	if stdin != nil {
		go func() {
			io.Copy(stdin, x.Stdin)
			stdin.Close()
		}()
	}
	return in.Wait()
}

func (in *inner) spaced() bool { return strings.HasSuffix(in.Args[1], "enter") }

// terminal runs the command at a terminal of its own.
func (in *inner) terminal(ctx context.Context, x adapters.Exec) error {
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	defer master.Close()
	defer slave.Close()
	if x.Rows > 0 && x.Cols > 0 {
		pty.Setsize(master, &pty.Winsize{Rows: x.Rows, Cols: x.Cols})
	}
	in.Stdin, in.Stdout, in.Stderr = slave, slave, slave
	if err := in.Start(); err != nil {
		return err
	}
	in.started()
	slave.Close()
	ended := make(chan struct{})
	defer close(ended)
	if x.Stdin != nil {
		go io.Copy(master, x.Stdin)
	}
	go func() {
		for {
			select {
			case size, ok := <-x.Resize:
				if !ok {
					return
				}
				pty.Setsize(master, &pty.Winsize{Rows: size[0], Cols: size[1]})
			case <-ended:
				return
			}
		}
	}()
	var copied sync.WaitGroup
	if x.Stdout != nil {
		copied.Go(func() { io.Copy(x.Stdout, master) }) // until the last holder of the other end is gone
	}
	err = in.Wait()
	master.SetReadDeadline(time.Now().Add(lingering))
	copied.Wait()
	return err
}

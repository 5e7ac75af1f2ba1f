package slurm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// execs bounds the commands that run beside tasks at once: each is an srun here.
var execs = make(chan struct{}, 64)

// Exec implements adapters.Execer: a step of the attempt's job, in its
// environment and working folder.
func (c *Commanded) Exec(ctx context.Context, k adapters.Key, x adapters.Exec) (int, error) {
	if len(x.Command) == 0 || x.Command[0] == "" || strings.Contains(x.Command[0], "=") {
		return 0, pcm.Errorf(pcm.Invalid, "there is no command to run, or its name contains =")
	}
	in, j, err := c.refOf(ctx, k)
	if err != nil {
		return 0, err
	}
	if states.Of(j.State).State == adapters.Suspended {
		return 0, pcm.Errorf(pcm.Conflict, "attempt %s is suspended: resume it first", k)
	}
	select {
	case execs <- struct{}{}:
		defer func() { <-execs }()
	default:
		return 0, pcm.Errorf(pcm.Busy, "%d commands run beside tasks already: try again later", cap(execs))
	}
	program := "srun"
	if c.cfg.Commands != "" {
		program = filepath.Join(c.cfg.Commands, program)
	}
	args := []string{
		"--jobid=" + strconv.FormatInt(j.Raw, 10), "--overlap", "--nodes=1", "--ntasks=1", "--quiet", "--export=NONE",
		"--chdir=/", "--mem=0", "--kill-on-bad-exit=0", "--unbuffered", "--job-name=pcm-exec",
	}
	if x.TTY {
		args = append(args, "--pty")
	}
	// How the command ends is said in a file: srun would have more to say about it.
	var id [8]byte
	rand.Read(id[:])
	said := c.spool.file(k.String(), "exec."+hex.EncodeToString(id[:]))
	defer os.Remove(said)
	args = append(args, "/bin/sh", c.spool.script(k.String(), in.Generation), "beside", said)
	cmd := exec.CommandContext(ctx, program, append(args, x.Command...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LC_ALL=C", "TERM=xterm"}
	if conf := firstOf(c.cfg.Conf, os.Getenv("SLURM_CONF")); conf != "" {
		cmd.Env = append(cmd.Env, "SLURM_CONF="+conf)
	}
	// A first signal asks srun to end the step; what stays is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	if x.TTY {
		err = runTTY(cmd, x)
	} else {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = x.Stdin, x.Stdout, x.Stderr
		err = runPiped(cmd, x.Stdin)
	}
	if text, readErr := readSmall(said); readErr == nil && ctx.Err() == nil {
		if code, numErr := strconv.Atoi(strings.TrimSpace(text)); numErr == nil {
			return code & 0xff, nil
		}
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return 0, pcm.Errorf(pcm.Unavailable, "the command was ended: %w", context.Cause(ctx))
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return 0, pcm.Errorf(pcm.Unavailable, "Slurm's command srun is not installed here: install Slurm's client")
	}
	return 0, pcm.Errorf(pcm.Unavailable, "can't run a command beside attempt %s: %w", k, err)
}

// runPiped runs cmd; a reader of ours that has yet to end does not keep it.
func runPiped(cmd *exec.Cmd, stdin io.Reader) error {
	cmd.Stdin = nil
	if stdin == nil {
		return cmd.Run()
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		io.Copy(in, stdin)
		in.Close()
	}()
	return cmd.Wait()
}

// runTTY runs cmd on a terminal of its own, whose other side is ours.
func runTTY(cmd *exec.Cmd, x adapters.Exec) error {
	master, name, err := openTerminal()
	if err != nil {
		return err
	}
	defer master.Close()
	resize := func(rows, cols uint16) {
		if rows > 0 && cols > 0 {
			if raw, err := master.SyscallConn(); err == nil { // Fd would make it block
				raw.Control(func(fd uintptr) {
					unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
				})
			}
		}
	}
	resize(x.Rows, x.Cols)
	slave, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	err = cmd.Start()
	slave.Close()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	var side sync.WaitGroup
	side.Go(func() {
		for {
			select {
			case size, ok := <-x.Resize:
				if !ok {
					return
				}
				resize(size[0], size[1])
			case <-done:
				return
			}
		}
	})
	if x.Stdin != nil {
		go io.Copy(master, x.Stdin) // ends with the reader, or with the terminal
	}
	var out sync.WaitGroup
	out.Go(func() {
		if x.Stdout != nil {
			io.Copy(x.Stdout, master) // to EIO, when nobody has the other side any more
		} else {
			io.Copy(io.Discard, master)
		}
	})
	err = cmd.Wait()
	close(done)
	side.Wait()
	drained := make(chan struct{})
	go func() { out.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(time.Second):
	}
	return err
}

// openTerminal makes a pseudo-terminal.
func openTerminal() (*os.File, string, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(fd)
		return nil, "", err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		unix.Close(fd)
		return nil, "", err
	}
	return os.NewFile(uintptr(fd), "/dev/ptmx"), "/dev/pts/" + strconv.Itoa(n), nil
}

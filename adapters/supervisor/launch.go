package supervisor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

const (
	errNoSocket = syscall.ENOENT
	errNobody   = syscall.ECONNREFUSED
)

// dial connects to the supervisor and starts one if there is none.
func (c *Client) dial(ctx context.Context) (*link, error) {
	l, err := c.dialOnce(ctx)
	if err == nil || !isGone(err) {
		return l, asUnavailable(err)
	}
	if len(c.cfg.Argv) == 0 {
		return nil, pcm.Errorf(pcm.Unavailable, "no supervisor serves %s", c.cfg.Dir)
	}
	limit := time.NewTimer(c.cfg.StartTimeout)
	defer limit.Stop()
	for try := range maxLaunches {
		ended, err := c.launch()
		if err != nil {
			return nil, err
		}
		for wait, gone := time.Millisecond, false; !gone; wait = min(2*wait, 50*time.Millisecond) {
			select {
			case <-ended:
				gone = true
			case <-time.After(wait):
			case <-limit.C:
				return nil, pcm.Errorf(pcm.Unavailable, "the supervisor did not answer within %s of its start; see %s", c.cfg.StartTimeout, logFile(c.cfg.Dir))
			case <-ctx.Done():
				return nil, timeout(ctx)
			}
			if l, err := c.dialOnce(ctx); err == nil || !isGone(err) {
				return l, asUnavailable(err)
			}
		}
		// It ends at once while one before it still holds the folder: try again.
		select {
		case <-time.After(20 * time.Millisecond << try):
		case <-ctx.Done():
			return nil, timeout(ctx)
		}
	}
	return nil, pcm.Errorf(pcm.Unavailable, "the supervisor ended as soon as it was started: %s", c.lastWords())
}

// maxLaunches bounds the tries of one dial.
const maxLaunches = 6

func asUnavailable(err error) error {
	if err == nil {
		return nil
	}
	var e *pcm.Error
	if errors.As(err, &e) {
		return e
	}
	return pcm.Errorf(pcm.Unavailable, "can't reach the supervisor: %w", err)
}

func (c *Client) dialOnce(ctx context.Context) (*link, error) {
	name, done, err := shortName(c.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", name)
	if err != nil {
		return nil, err
	}
	l, err := greet(ctx, conn, c.cfg.Version)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil, errNobody // it was just ending
	}
	return l, err
}

// launch starts the supervisor in a session of its own, so that neither a
// signal to our terminal nor our end reaches it.
func (c *Client) launch() (ended <-chan struct{}, err error) {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't make the supervisor's folder: %w", err)
	}
	log, err := openLog(logFile(c.cfg.Dir))
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't open the supervisor's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(c.cfg.Argv[0], c.cfg.Argv[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log.file, log.file
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, c.cfg.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't start the supervisor %s: %w", strings.Join(c.cfg.Argv, " "), err)
	}
	c.log.Info("started the supervisor", "pid", cmd.Process.Pid)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd.Wait() // how it ended stands in its log
	}()
	return done, nil
}

// lastWords is the last line of the supervisor's log.
func (c *Client) lastWords() string {
	data, err := os.ReadFile(logFile(c.cfg.Dir))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return cut(string(lines[len(lines)-1]), 512)
}

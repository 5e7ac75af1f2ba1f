package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) jobScaleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "scale JOB [STEP=]COUNT", Short: "Set how many tasks of a service run", Args: exactly(2, "a JOB and how many tasks are to run, as COUNT or STEP=COUNT"),
		Long: `Sets how many tasks of a service run: from 0 to the count of its step in the spec.
Those with the highest indexes are stopped first. With 0 nothing runs, and the job
stays open: 'pcm job stop' ends it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			step, number, ok := strings.Cut(args[1], "=")
			if !ok {
				step, number = "", args[1]
			}
			count, err := strconv.Atoi(number)
			if err != nil || count < 0 {
				return pcm.Errorf(pcm.Invalid, "%q is not a number of tasks: write COUNT or STEP=COUNT, like web=3", args[1])
			}
			return view(a, func(ctx context.Context, c *api.Client) (api.Job, error) { return c.Scale(ctx, args[0], step, count) }, func(t *table, j api.Job) {
				for _, s := range j.Services {
					if step == "" || s.Step == step {
						t.text("%s/%s is scaled to %d of %d; %d placed now.", pcm.Short(j.ID), s.Step, s.Scale, s.Most, s.Placed)
					}
				}
			})(cmd, args)
		},
	}
}

// suspended is what 'job suspend' and 'job resume' tell.
type suspended struct {
	ID    pcm.JobID `json:"id"`
	Tasks []string  `json:"tasks"` // JOB/STEP/INDEX
}

func (a *app) jobSuspendCommand() *cobra.Command {
	return a.suspendCommand("suspend", "Halt running tasks; lease, time limit and price run on", true)
}

func (a *app) jobResumeCommand() *cobra.Command {
	return a.suspendCommand("resume", "Let suspended tasks go on", false)
}

func (a *app) suspendCommand(use, short string, on bool) *cobra.Command {
	var typed string
	c := &cobra.Command{
		Use: use + " JOB", Short: short, Args: exactly(1, "a JOB, as 'pcm job list' shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			tasks, err := taskName{args[0], typed}.list(ctx, c)
			if err != nil {
				return err
			}
			sum := suspended{}
			var mu sync.Mutex
			var g errgroup.Group
			g.SetLimit(fetchers)
			var failures []error
			for _, t := range tasks {
				sum.ID = t.Job
				if t.State != pcm.TaskPlaced {
					continue
				}
				g.Go(func() error {
					err := c.Suspend(ctx, string(t.Job), t.Step, t.Index, on)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						failures = append(failures, pcm.Errorf(pcm.ErrorCode(err), "task %s/%d: %w", t.Step, t.Index, err))
						return nil
					}
					sum.Tasks = append(sum.Tasks, t.ID)
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				return err
			}
			if len(failures) == 0 && len(sum.Tasks) == 0 {
				return pcm.Errorf(pcm.Conflict, "none of the %s runs now; see 'pcm job describe %s'", plural(len(tasks), "task"), args[0])
			}
			if len(failures) > 0 {
				return pcm.Errorf(pcm.ErrorCode(failures[0]), "%s of %d: %w", plural(len(failures), "failure"), len(failures)+len(sum.Tasks), errors.Join(failures[:min(len(failures), 8)]...))
			}
			return a.print(sum, func(tb *table) {
				tb.text("%s: %s %s.", pcm.Short(sum.ID), plural(len(sum.Tasks), "task"), map[bool]string{true: "suspended", false: "resumed"}[on])
			})
		},
	}
	c.Flags().StringVar(&typed, "task", "", "only this `TASK`: INDEX, STEP/INDEX or STEP")
	return c
}

// Bounds of forwarded ports.
const (
	maxForwarded = 200              // connections at once
	forwardTry   = 30 * time.Second // that a connection waits for a task that takes it
	forwardAgain = 2 * time.Second
)

func (a *app) forwardCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "port-forward TASK [LOCAL[:REMOTE]…]",
		Short: "Reach the port of a service from this machine",
		Long: `Listens on a port of this machine and carries each connection over the mesh to a
running task of a service. TASK is JOB, JOB/STEP or JOB/STEP/INDEX; of several tasks
each connection takes the next one. When a task is placed anew, new connections
find it where it is then. LOCAL is a port of this machine (0: any that is free; the
default), REMOTE the service's own.

  pcm port-forward job-x7k2mq4w 8080
  curl http://127.0.0.1:8080/`,
		Args: func(cmd *cobra.Command, args []string) error {
			return between(1, 9, "a TASK and perhaps ports as LOCAL[:REMOTE]")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := parseTask(args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if _, err := name.list(ctx, c); err != nil {
				return err
			}
			if len(args) == 1 {
				args = append(args, "0")
			}
			f := &forwarder{a: a, c: c, name: name, slots: make(chan struct{}, maxForwarded)}
			var g errgroup.Group
			for _, ports := range args[1:] {
				local, remote, err := parsePorts(ports)
				if err != nil {
					return err
				}
				l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(local)))
				if err != nil {
					stop()
					return errors.Join(pcm.Errorf(pcm.Refused, "can't listen on port %d: %w", local, err), g.Wait())
				}
				fmt.Fprintf(a.out, "%s -> %s%s\n", l.Addr(), name, portText(remote))
				g.Go(func() error { return f.serve(ctx, l, remote) })
			}
			return g.Wait()
		},
	}
	c.Flags().StringVar(&address, "address", "127.0.0.1", "address of this machine to listen on: others can connect to the service as you if it isn't loopback")
	return c
}

func portText(port int) string {
	if port == 0 {
		return ""
	}
	return ":" + strconv.Itoa(port)
}

func (n taskName) String() string {
	if n.rest == "" {
		return n.job
	}
	return n.job + "/" + n.rest
}

// parsePorts reads LOCAL or LOCAL:REMOTE.
func parsePorts(typed string) (local, remote int, err error) {
	l, r, both := strings.Cut(typed, ":")
	local, err = strconv.Atoi(l)
	if err == nil && both {
		remote, err = strconv.Atoi(r)
	}
	if err != nil || local < 0 || local > 65535 || remote < 0 || remote > 65535 || both && remote == 0 {
		return 0, 0, pcm.Errorf(pcm.Invalid, "%q is not a port or LOCAL:REMOTE, like 8080 or 9000:8080", typed)
	}
	return local, remote, nil
}

// forwarder carries connections to a service.
type forwarder struct {
	a     *app
	c     *api.Client
	name  taskName
	next  atomic.Int64 // of several tasks, which one comes next
	slots chan struct{}
}

// serve takes connections until ctx ends, and waits for those that are open.
func (f *forwarder) serve(ctx context.Context, l net.Listener, remote int) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return pcm.Errorf(pcm.Unavailable, "can't take connections any more: %w", err)
		}
		select {
		case f.slots <- struct{}{}:
		default:
			f.a.hint("pcm: %d connections are open already: another one is closed", maxForwarded)
			conn.Close()
			continue
		}
		open.Go(func() {
			defer func() { <-f.slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := f.carry(ctx, conn, remote); err != nil && ctx.Err() == nil {
				f.a.hint("pcm: a connection to %s failed: %s", f.name, err)
			}
		})
	}
}

// carry carries one connection.
func (f *forwarder) carry(ctx context.Context, near net.Conn, remote int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	far, err := f.dial(ctx, remote)
	if err != nil {
		return err
	}
	defer far.Close()
	go func() {
		io.Copy(far, near) // how it ends shows at the other direction
		if half, ok := far.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}()
	_, err = io.Copy(near, far)
	return err
}

// dial connects to one of the service's tasks. While none can be reached it looks
// again, for some time: a task may be on its way to another place.
func (f *forwarder) dial(ctx context.Context, remote int) (net.Conn, error) {
	patience := time.Now().Add(forwardTry)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, forwardAgain) {
		tasks, err := f.name.list(ctx, f.c)
		if err != nil {
			return nil, err
		}
		var running []api.Task
		for _, t := range tasks {
			if t.State == pcm.TaskPlaced {
				running = append(running, t)
			}
		}
		if len(running) == 0 {
			err = pcm.Errorf(pcm.Conflict, "none of its %s runs now", plural(len(tasks), "task"))
		}
		first := int(f.next.Add(1) - 1)
		for n := range running {
			t := running[(first+n)%len(running)]
			var conn net.Conn
			if conn, err = f.c.DialTask(ctx, string(t.Job), t.Step, t.Index, remote); err == nil {
				return conn, nil
			}
		}
		switch pcm.ErrorCode(err) {
		case pcm.Unavailable, pcm.Conflict, pcm.NotFound, pcm.Busy:
		default:
			return nil, err
		}
		if time.Now().Add(wait).After(patience) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

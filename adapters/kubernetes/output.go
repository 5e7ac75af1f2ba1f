package kubernetes

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm/adapters/supervisor"
)

// reader brings the output of one task: live where there is a place for that,
// else at the end.
type reader struct {
	r     *Runner
	t     *supervisor.Run
	pod   string
	stop  context.CancelFunc
	live  sync.WaitGroup
	parts []*part
}

// part is one stream of the container's log.
type part struct {
	stream string // "" is both
	to     io.Writer
	got    atomic.Int64 // bytes
	whole  atomic.Bool  // read to its end, after the end of the task
}

// read begins to read the output of a pod whose task has started.
func (r *Runner) read(t *supervisor.Run, pod string) *reader {
	ctx, cancel := context.WithCancel(context.Background())
	d := &reader{r: r, t: t, pod: pod, stop: cancel}
	if r.merged.Load() {
		d.parts = []*part{{to: t.Stdout}}
	} else {
		d.parts = []*part{{stream: "Stdout", to: t.Stdout}, {stream: "Stderr", to: t.Stderr}}
	}
	for _, p := range d.parts {
		select {
		case r.follows <- struct{}{}:
			d.live.Go(func() {
				defer func() { <-r.follows }()
				d.follow(ctx, p)
			})
		default: // at the end, then
		}
	}
	return d
}

// follow reads a stream until its end, and goes on where it was cut off.
func (d *reader) follow(ctx context.Context, p *part) {
	for wait := minWait; ctx.Err() == nil; wait = min(2*wait, maxWait) {
		before := p.got.Load()
		err := d.copy(ctx, p, true)
		if err == nil || errors.Is(err, errWrite) {
			p.whole.Store(true)
			return
		}
		var no *refusal
		if errors.As(err, &no) && no.code != http.StatusInternalServerError && no.code < 502 {
			return
		}
		if p.got.Load() > before {
			wait = minWait
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

var errWrite = errors.New("nobody takes the output")

// copy brings what of the stream has not been brought.
func (d *reader) copy(ctx context.Context, p *part, follow bool) error {
	body, err := d.r.c.logs(ctx, d.pod, taskContainer, p.stream, follow)
	var no *refusal
	if errors.As(err, &no) && p.stream != "" && (no.code == http.StatusUnprocessableEntity || no.code == http.StatusBadRequest) && d.r.splitRefused(no) {
		if p.stream == "Stderr" {
			return nil // it comes with stdout
		}
		p.stream = ""
		body, err = d.r.c.logs(ctx, d.pod, taskContainer, "", follow)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	if skip := p.got.Load(); skip > 0 {
		if _, err := io.CopyN(io.Discard, body, skip); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // it was cut meanwhile: what is there was seen
			}
			return err
		}
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := p.to.Write(buf[:n]); werr != nil {
				return errWrite
			}
			p.got.Add(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Bounds of reading what is left after the end.
const (
	followRest = 10 * time.Second // for the live streams to end by themselves
	readRest   = 5 * time.Minute
)

// finish reads what is left; the task has ended.
func (d *reader) finish(ctx context.Context) error {
	ended := make(chan struct{})
	go func() { d.live.Wait(); close(ended) }()
	timer := time.NewTimer(followRest)
	defer timer.Stop()
	for last := d.sum(); ; last = d.sum() {
		select {
		case <-ended:
		case <-timer.C:
			if d.sum() > last { // it still comes
				timer.Reset(followRest)
				continue
			}
		case <-ctx.Done():
		}
		break
	}
	d.stop()
	<-ended
	ctx, cancel := context.WithTimeout(ctx, readRest)
	defer cancel()
	for _, p := range d.parts {
		for wait := minWait; !p.whole.Load(); wait = min(2*wait, maxWait) {
			err := d.copy(ctx, p, false)
			if err == nil || errors.Is(err, errWrite) {
				break
			}
			var no *refusal
			if errors.As(err, &no) && no.code < 500 {
				return err
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(wait):
			}
		}
	}
	return nil
}

func (d *reader) sum() (n int64) {
	for _, p := range d.parts {
		n += p.got.Load()
	}
	return n
}

func (d *reader) close() {
	if d != nil {
		d.stop()
		d.live.Wait()
	}
}

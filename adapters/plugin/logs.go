package plugin

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// reader brings an attempt's output over.
type reader struct {
	a    *attempt
	want chan [2]int64 // capacity 1: sizes that were told of
	over chan struct{} // closed when the attempt has ended
	done chan struct{} // closed when the reader has
	at   [2]int64
	why  string // what is missing; read after done
}

const (
	maxRead    = 512 << 10        // of one stream in one call
	drainLimit = 30 * time.Second // from an attempt's end to that of its streams, if they don't grow
)

func newReader(a *attempt) *reader {
	return &reader{a: a, want: make(chan [2]int64, 1), over: make(chan struct{}), done: make(chan struct{})}
}

// hint tells how much there is.
func (r *reader) hint(sizes [2]int64) {
	select {
	case <-r.want:
	default:
	}
	r.want <- sizes
}

// drain waits until all is read that the ended attempt has written. It says what is missing.
func (r *reader) drain(ctx context.Context) string {
	close(r.over)
	<-r.done // bounded by ctx and drainLimit
	if ctx.Err() != nil {
		return ""
	}
	return r.why
}

// every is how often the plug-in wants to be asked, where it tells no sizes.
func (r *reader) every() time.Duration {
	r.a.h.mu.Lock()
	defer r.a.h.mu.Unlock()
	if ms := r.a.h.facts.LogsMS; ms > 0 {
		return time.Duration(min(max(ms, 100), 60_000)) * time.Millisecond
	}
	return time.Second
}

func (r *reader) run(ctx context.Context) {
	defer close(r.done)
	sizes, ended := [2]int64{}, r.a.track.end() != nil // there is nothing until something is told
	var since time.Time                                // since when nothing more came of what must come
	for {
		if ended && since.IsZero() {
			since = time.Now()
		}
		if ended || sizes[0] < 0 || sizes[1] < 0 || sizes[0] > r.at[0] || sizes[1] > r.at[1] {
			got, eof, err := r.read(ctx)
			switch {
			case got:
				since = time.Time{}
				if ended {
					since = time.Now()
				}
				if !eof {
					continue // there may be more
				}
			case err == errFull:
				return // the supervisor ends it
			}
			if ended && eof {
				return
			}
			if ended && err != nil && (final(err) || pcm.ErrorCode(err) == pcm.NotFound) {
				r.why = "its output can't be had: " + err.Error()
				return
			}
			if ended && time.Since(since) > drainLimit {
				r.why = "its output did not come to an end"
				if err != nil {
					r.why += ": " + err.Error()
				}
				return
			}
		}
		wait := r.every()
		over := r.over
		if ended {
			wait, over = minWait, nil
		}
		select {
		case sizes = <-r.want:
		case <-time.After(wait):
			if !ended && sizes[0] >= 0 && sizes[1] >= 0 {
				continue // it would have been told
			}
		case <-over:
			ended = true
		case <-ctx.Done():
			return
		}
	}
}

// errFull is that the attempt may write no more.
var errFull = pcm.Errorf(pcm.TooLarge, "over the cap of output")

// read brings what there is now; got tells whether there was something.
func (r *reader) read(ctx context.Context) (got, eof bool, err error) {
	l, why, _ := r.a.h.use()
	if l == nil {
		return false, false, pcm.Errorf(pcm.Unavailable, "%s", why)
	}
	res, err := call[pluginpb.LogsRequest, pluginpb.LogsResponse](ctx, l, "Logs", logsCall, &pluginpb.LogsRequest{
		Key: r.a.Key.String(), StdoutOffset: r.at[0], StderrOffset: r.at[1], MaxBytes: maxRead,
	})
	if err != nil {
		return false, false, err
	}
	if len(res.Stdout) > maxRead || len(res.Stderr) > maxRead {
		return false, false, pcm.Errorf(pcm.Internal, "the plug-in answered Logs with %d and %d bytes where %d are the most", len(res.Stdout), len(res.Stderr), maxRead)
	}
	if len(res.Stdout) > 0 {
		if _, err := r.a.Stdout.Write(res.Stdout); err != nil {
			return false, false, errFull
		}
	}
	if len(res.Stderr) > 0 {
		if _, err := r.a.Stderr.Write(res.Stderr); err != nil {
			return false, false, errFull
		}
	}
	r.at[0] += int64(len(res.Stdout))
	r.at[1] += int64(len(res.Stderr))
	return len(res.Stdout)+len(res.Stderr) > 0, res.Eof, nil
}

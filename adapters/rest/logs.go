package rest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

const (
	logSteps   = 64               // calls for one stream in one turn
	lastWords  = 15 * time.Second // until the end of a script's output is given up
	drainTime  = 2 * time.Minute  // to read the rest of an ended job's output, its back end being away
	remembered = 4 << 10          // bytes by which a log is known again
)

// reader carries a job's output over.
type reader struct {
	a     *attempt
	logs  []*stream
	marks *marks
	whole [2]*spilledStream // of logs that keep their end only: stdout and stderr

	once sync.Once
	stop context.CancelFunc
	done chan struct{}
}

// stream is one log.
type stream struct {
	log    *description.Log
	dst    io.Writer
	offset any    // where reading goes on
	read   int64  // bytes taken, of logs that come whole
	head   []byte // what they began with
	tail   []byte // and what was taken last
	whole  bool   // all of it can be had in the end
	gap    bool   // what comes next doesn't follow what was taken
	full   bool   // over the cap: the supervisor ends the attempt
}

func newReader(a *attempt) *reader {
	r := &reader{a: a, done: make(chan struct{}), marks: &marks{nonce: []byte(a.n.Nonce), stdout: a.Stdout, stderr: a.Stderr}}
	if a.b.tail() {
		for i, w := range []*io.Writer{&r.marks.stdout, &r.marks.stderr} {
			if key, _ := spill(a.n.Data, spilled[i]); key != "" {
				r.whole[i] = newSpilled(*w, key)
				*w = r.whole[i]
			}
		}
	}
	r.marks.lose = r.lose
	for i := range a.b.d.Logs {
		l := &a.b.d.Logs[i]
		s := &stream{log: l, dst: a.Stdout, offset: int64(0), whole: r.whole[0] != nil}
		if l.Follow == "marker" {
			s.offset = ""
		}
		switch {
		case adapters.StreamName(l.Stream) == adapters.Stderr:
			s.dst = a.Stderr
		case a.b.scripted:
			s.dst = r.marks
		}
		r.logs = append(r.logs, s)
	}
	return r
}

// start begins to read while the job runs.
func (r *reader) start() {
	r.once.Do(func() {
		ctx, cancel := context.WithCancel(r.a.r.ctx)
		r.stop = cancel
		go r.run(ctx)
	})
}

func (r *reader) run(ctx context.Context) {
	defer close(r.done)
	quiet := 0
	if first := r.a.b.logShare(r.a.r.poller.count()); !pause(ctx, rand.N(first+1)) { // many may begin at once
		return
	}
	for len(r.logs) > 0 {
		news, err := r.turn(ctx)
		if quiet++; news && err == nil {
			quiet = 0
		}
		if !pause(ctx, r.a.b.logPause(r.a.r.poller.count(), quiet)) {
			return
		}
	}
}

// logPause is how long the next look at a log waits: logs of all attempts take at
// most half of what may be asked, and those that are still are looked at less often.
func (b *backend) logPause(attempts, quiet int) time.Duration {
	return min(max(b.poll, b.logShare(attempts))*time.Duration(1+min(quiet/8, 4)), 5*time.Minute)
}

// logShare is how long one look at all logs takes at half the rate.
func (b *backend) logShare(attempts int) time.Duration {
	return time.Duration(float64(attempts) / (b.rate / 2) * float64(time.Second))
}

// close ends the reading.
func (r *reader) close() {
	r.once.Do(func() { close(r.done) })
	if r.stop != nil {
		r.stop()
	}
	<-r.done
}

// finish reads what is left. ended says that the job came to an end of its own.
func (r *reader) finish(ctx context.Context, ended bool) error {
	r.close()
	if len(r.logs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	began := time.Now()
	for wait := minWait; ; wait = min(2*wait, 5*time.Second) {
		news, err := r.turn(ctx)
		switch {
		case err == nil && r.full():
			return nil
		case err == nil && r.a.b.scripted && !r.marks.ended && ended && time.Since(began) < lastWords:
			wait = min(wait, max(r.a.b.poll, 100*time.Millisecond))
		case err == nil && (!news || r.a.b.scripted):
			if err := r.marks.close(); err != nil {
				return err
			}
			return r.complete(ctx)
		case err == nil:
			continue
		case !isAway(err) && !isAbsent(err):
			return err
		}
		if !pause(ctx, wait) {
			r.marks.close()
			if err == nil {
				err = pcm.Errorf(pcm.Unavailable, "there was no time to read the rest")
			}
			return err
		}
	}
}

// lose is called when a part of the output was lost. What comes is held back if all of it can be had in the end.
func (r *reader) lose() {
	if r.whole[0] == nil {
		_, _ = io.WriteString(r.a.Stdout, lostNote) // the next write tells of a fault
		return
	}
	for _, s := range r.whole {
		s.lost = true
	}
}

// tail tells whether a log keeps its end only.
func (b *backend) tail() bool {
	return slices.ContainsFunc(b.d.Logs, func(l description.Log) bool { return l.Follow == "tail" })
}

func (r *reader) full() bool {
	for _, s := range r.logs {
		if s.full {
			return true
		}
	}
	return false
}

// turn reads what is new in all logs.
func (r *reader) turn(ctx context.Context) (news bool, err error) {
	for _, s := range r.logs {
		some, err := r.follow(ctx, s)
		news = news || some
		if err != nil && !isAbsent(err) { // a log that isn't there is empty
			return news, err
		}
	}
	return news, nil
}

// follow reads what is new in one log.
func (r *reader) follow(ctx context.Context, s *stream) (news bool, err error) {
	for range logSteps {
		if s.full || ctx.Err() != nil {
			return news, ctx.Err()
		}
		text, more, err := r.next(ctx, s)
		if err != nil || text == "" {
			return news, err
		}
		news = true
		if s.gap {
			s.gap = false
			if m, scripted := s.dst.(*marks); scripted {
				m.gap()
			}
		}
		if _, err := io.WriteString(s.dst, text); err != nil {
			s.full = true
			return news, nil
		}
		if !more {
			return news, nil
		}
	}
	return news, nil
}

// next makes one call for what is new.
func (r *reader) next(ctx context.Context, s *stream) (text string, more bool, err error) {
	b, l := r.a.b, s.log
	vars := r.a.vars()
	vars["offset"] = s.offset
	if l.Object.Given() {
		text, err = r.a.object(ctx, l.Object, vars)
		if err != nil {
			return "", false, err
		}
		return s.fresh(text), false, nil
	}
	said, err := b.call(ctx, &l.Call, vars)
	if err != nil {
		return "", false, err
	}
	with := said.in(vars)
	v := said.body
	if l.Text.Given() {
		if v, err = l.Text.Eval(ctx, with); err != nil {
			return "", false, pcm.Errorf(pcm.Unavailable, "the log of %s is not as described: %w", b.name, err)
		}
	}
	text = expr.Text(v)
	switch l.Follow {
	case "offset", "marker":
		if l.Next.Given() {
			next, err := l.Next.Eval(ctx, with)
			if err != nil {
				return "", false, pcm.Errorf(pcm.Unavailable, "the log of %s is not as described: %w", b.name, err)
			}
			if next == nil {
				return text, false, nil
			}
			if next == s.offset {
				return "", false, nil // nothing moves: what comes again is no news
			}
			s.offset = next
		} else if at, err := strconv.ParseInt(expr.Text(s.offset), 10, 64); err == nil {
			s.offset = at + int64(len(text))
		}
		return text, true, nil
	}
	return s.fresh(text), false, nil
}

// fresh is what is new in a log that comes whole, or as much of its end as its
// back end gives. A log that shrinks has nothing new.
func (s *stream) fresh(text string) string {
	all := []byte(text)
	from := len(all)
	n := min(len(all), len(s.head))
	moved := s.log.Follow == "tail" && !bytes.Equal(all[:n], s.head[:n])
	switch {
	case s.read == 0:
		from = 0
	case moved && s.whole && bytes.Index(all, s.tail) != bytes.LastIndex(all, s.tail):
		from, s.gap = 0, true // it repeats itself: what was taken last may be any of these
	case !moved && int64(len(all)) >= s.read && bytes.Equal(all[s.read-int64(len(s.tail)):s.read], s.tail):
		from = int(s.read)
	default:
		if i := bytes.LastIndex(all, s.tail); i >= 0 {
			from = i + len(s.tail)
		} else if !bytes.Equal(all[:n], s.head[:n]) {
			from, s.gap = 0, moved // its window has moved on
		} else if int64(len(all)) > s.read {
			from = int(s.read)
		}
	}
	news := all[from:]
	if len(s.head) < remembered {
		s.head = append(s.head, news[:min(len(news), remembered-len(s.head))]...)
	}
	s.tail = append(s.tail, news...)
	s.tail = append([]byte(nil), s.tail[max(0, len(s.tail)-remembered):]...)
	s.read += int64(len(news))
	return string(news)
}

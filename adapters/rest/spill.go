package rest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
)

// A log that keeps its end only, as a console does, loses what nobody has read in
// time. Where there is a store that jobs reach, their scripts leave both streams
// there, whole, and what was lost is taken from there in the end.

// spilled are the streams, in the order in which scripts tell of them.
var spilled = [2]string{"stdout", "stderr"}

// spillPlaces is where the script is to leave its streams; nil if there is no place or no need.
func (a *attempt) spillPlaces(ctx context.Context, prefix string) (map[string]any, error) {
	if a.b.store == nil || a.b.d.Data.Scheme != "https" || !a.b.scripted || !a.b.tail() {
		return nil, nil
	}
	places := map[string]any{}
	for _, name := range spilled {
		key := prefix + "/log/" + name
		url, err := a.link(ctx, http.MethodPut, key)
		if err != nil {
			return nil, err
		}
		places[name] = map[string]any{"key": key, "url": url}
	}
	return places, nil
}

// spill is one of the places: its key and URL; "" if there is none.
func spill(data map[string]any, name string) (key, url string) {
	places, _ := data["streams"].(map[string]any)
	place, _ := places[name].(map[string]any)
	return expr.Text(place["key"]), expr.Text(place["url"])
}

// spillScript leaves the streams in their places, unless they are so short that
// no log has lost any of them, and says how long they are.
func spillScript(data map[string]any) string {
	_, out := spill(data, spilled[0])
	_, errs := spill(data, spilled[1])
	if out == "" || errs == "" {
		return ""
	}
	return `so=$(wc -c <"$d/stdout") se=$(wc -c <"$d/stderr")
[ $((so + se)) -le 4096 ] || { put ` + shell(out) + ` "$d/stdout" && put ` + shell(errs) + ` "$d/stderr"; }
say b "$so $se"
`
}

// spilledStream is a stream of which it is known how much was delivered.
type spilledStream struct {
	w    io.Writer
	key  string // of the object that will hold all of it
	n    int64
	sum  hash.Hash
	lost bool // what comes now doesn't follow
}

func newSpilled(w io.Writer, key string) *spilledStream {
	return &spilledStream{w: w, key: key, sum: sha256.New()}
}

// Write delivers what follows, and drops the rest.
func (s *spilledStream) Write(p []byte) (int, error) {
	if s.lost {
		return len(p), nil
	}
	return s.deliver(p)
}

func (s *spilledStream) deliver(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// rest takes a stream from its begin, and delivers what was not delivered yet.
type rest struct {
	s    *spilledStream
	had  int64
	left int64 // of what was delivered before
	seen hash.Hash
	full bool
}

func newRest(s *spilledStream) *rest {
	return &rest{s: s, had: s.n, left: s.n, seen: sha256.New()}
}

var errOther = errors.New("it begins otherwise than what was read of it")

func (r *rest) Write(p []byte) (int, error) {
	all := len(p)
	known := p[:min(int64(len(p)), r.left)]
	r.seen.Write(known)
	r.left -= int64(len(known))
	if p = p[len(known):]; len(p) == 0 {
		return all, nil
	}
	if r.had > 0 {
		if !bytes.Equal(r.seen.Sum(nil), r.s.sum.Sum(nil)) {
			return 0, errOther
		}
		r.had = 0
	}
	if _, err := r.s.deliver(p); err != nil {
		r.full = true
		return 0, err
	}
	return all, nil
}

const lostNote = "\n[a part of the output is lost: its back end keeps the end only]\n"

// complete delivers what the log has lost.
func (r *reader) complete(ctx context.Context) error {
	for i, s := range r.whole {
		if s == nil || !s.lost && (!r.marks.sized || s.n >= r.marks.sizes[i]) {
			continue
		}
		err := error(pcm.Errorf(pcm.NotFound, "its script did not end"))
		for wait := minWait; r.marks.sized; wait = min(2*wait, 5*time.Second) {
			to := newRest(s)
			_, err = r.a.b.store.Get(ctx, s.key, to, maxLog)
			if to.full {
				return nil // over the cap: the supervisor ends the attempt
			}
			if err == nil || !isAway(err) || errors.Is(err, errOther) || !pause(ctx, wait) {
				break
			}
		}
		if err != nil {
			r.a.r.log.Warn("a part of the output is lost", "attempt", r.a.key, "stream", spilled[i], "err", err)
			if _, err := io.Copy(s.w, strings.NewReader(lostNote)); err != nil {
				return nil // over the cap
			}
		}
	}
	return nil
}

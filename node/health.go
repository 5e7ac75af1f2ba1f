package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// wellness is where a service's attempt stands with its health checks.
type wellness string

const (
	starting  wellness = "starting" // no check was good yet
	healthy   wellness = "healthy"
	unhealthy wellness = "unhealthy" // it is being ended
)

// vitals are what health checks have found of an attempt that runs here.
type vitals struct {
	state wellness
	said  string // what the last check found, if that was bad
}

// checkHealth sees to it that every service's attempt that runs here is checked.
func (s *seller) checkHealth(ctx context.Context) error {
	for pause(ctx, 500*time.Millisecond) {
		s.mu.Lock()
		for _, x := range s.trades {
			if !x.prepared || x.terms.Step >= len(x.held.spec.Steps) {
				continue
			}
			svc := x.held.spec.Steps[x.terms.Step].Service
			if svc == nil || svc.Health == nil {
				continue
			}
			for i, r := range x.running {
				if r.placed && r.began && !x.ended[i] && r.vitals == nil {
					r.vitals = &vitals{state: starting}
					go s.attend(ctx, x, i, r, *svc)
				}
			}
		}
		s.mu.Unlock()
	}
	return nil
}

// attend checks one attempt until it ends, and ends it when it is unhealthy.
func (s *seller) attend(ctx context.Context, x *execution, i int, r *run, svc pcm.Service) {
	h := svc.Health
	begun, bad := time.Now(), 0
	for {
		if !pause(ctx, h.Every()) {
			return
		}
		s.mu.Lock()
		runs := x.running[i] == r && !x.ended[i] && x.ctx.Err() == nil
		state, halted := r.vitals.state, r.status.State == adapters.Suspended
		s.mu.Unlock()
		if !runs {
			return
		}
		if halted { // it can't answer, and is not meant to
			bad = 0
			continue
		}
		err := s.probe(ctx, x, i, svc)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			bad, state = 0, healthy
		case state == starting && time.Since(begun) < h.Grace():
		default:
			bad++
		}
		said := ""
		if err != nil {
			said = clip(err.Error())
		}
		sick := bad >= h.Most()
		if sick {
			state = unhealthy
		}
		s.mu.Lock()
		*r.vitals = vitals{state, said}
		s.mu.Unlock()
		if sick {
			s.n.log.Info("a service is unhealthy and is ended", "trade", x.terms.Trade(), "task", i, "reason", said)
			s.stopOne(x, i, "health check: "+said)
			return
		}
	}
}

// sickness is why an attempt was ended by its seller for its health; "" if it was not.
func (r *run) sickness() string {
	if r == nil || r.vitals == nil || r.vitals.state != unhealthy {
		return ""
	}
	return "health check: " + r.vitals.said
}

// probe checks an attempt once.
func (s *seller) probe(ctx context.Context, x *execution, i int, svc pcm.Service) error {
	h := svc.Health
	ctx, cancel := context.WithTimeout(ctx, h.Within())
	defer cancel()
	a, k := s.adapters[x.terms.Adapter], x.key(i)
	if len(h.Command) > 0 {
		role, ok := a.(adapters.Execer)
		if !ok {
			return s.lacks(x, pcm.FeatureExec)
		}
		return probeCommand(ctx, role, k, *h)
	}
	role, ok := a.(adapters.Dialer)
	if !ok {
		return s.lacks(x, pcm.FeatureService)
	}
	dial := func(ctx context.Context) (net.Conn, error) { return role.Dial(ctx, k, svc.Port) }
	if h.HTTP != "" {
		return probeHTTP(ctx, dial, *h)
	}
	conn, err := dial(ctx)
	if err != nil {
		return late(ctx, h, err)
	}
	return conn.Close()
}

// late words an error of a check that had no more time.
func late(ctx context.Context, h *pcm.HealthCheck, err error) error {
	if ctx.Err() != nil {
		return pcm.Errorf(pcm.Unavailable, "no answer within %s", h.Within())
	}
	return err
}

func probeCommand(ctx context.Context, role adapters.Execer, k adapters.Key, h pcm.HealthCheck) error {
	w := &firstWords{}
	code, err := role.Exec(ctx, k, adapters.Exec{Command: h.Command, Stdout: w, Stderr: w})
	switch {
	case err != nil:
		return late(ctx, &h, err)
	case code != 0:
		return pcm.Errorf(pcm.Unavailable, "%s ended with %d%s", h.Command[0], code, prefixed(": ", strings.TrimSpace(strings.ToValidUTF8(w.String(), "?"))))
	}
	return nil
}

// firstWords keeps the beginning of what is written to it, by two streams at once.
type firstWords struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *firstWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p[:min(len(p), max(0, 128-w.b.Len()))])
	return len(p), nil
}

func (w *firstWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

func probeHTTP(ctx context.Context, dial func(context.Context) (net.Conn, error), h pcm.HealthCheck) error {
	client := &http.Client{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://task"+h.HTTP, nil)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "can't ask for %s: %w", h.HTTP, err)
	}
	req.Header.Set("User-Agent", "pcm-health")
	resp, err := client.Do(req)
	if err != nil {
		return late(ctx, &h, err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // whether it says more is not asked
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("%s answers %s", h.HTTP, resp.Status)
	}
	return nil
}

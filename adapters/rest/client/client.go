package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/jointcloud/pcm"
)

// Config says how a back end is called. Zero values of bounds mean their defaults.
type Config struct {
	// Origins are the addresses of the back end's interface, "https://HOST[:PORT]":
	// the log-in goes to them and nowhere else. Paths in them mean nothing.
	Origins []string
	Login   Login
	Secrets *Secrets

	Rate      float64       // calls in a second, tries included; 10
	Burst     int           // how many of them at once; 10
	Retry     Retry         // of what may be tried again
	Timeout   time.Duration // of one try, from the connection to the last byte; 30 s
	MaxBody   pcm.Bytes     // of an answer, as it comes and unpacked; 8 MiB
	UserAgent string

	// AllowPrivate lets the client connect to loopback, link-local and private
	// addresses, and lets the log-in go over HTTP without TLS. The addresses of
	// clouds' metadata services stay closed.
	AllowPrivate bool
	CA           string // file of certificates trusted beside the system's

	// Trace is told of each exchange, with all secrets blotted out.
	Trace func(Exchange)
}

// Retry bounds what is tried again: calls that are idempotent, and others where
// the server can't have acted.
type Retry struct {
	Tries   int           // in all; 4
	First   time.Duration // pause after the first try, doubled each time, with a random part; 500 ms
	MaxWait time.Duration // longest pause, also where the server asks for one; 30 s
}

// Bounds of the settings.
const (
	maxWaiting   = 1024 // calls in progress or waiting, but for those that go ahead
	maxTries     = 20
	maxRedirects = 3
)

// Client calls one back end. It is safe for concurrent use.
type Client struct {
	cfg     Config
	login   login
	open    http.RoundTripper // as the configuration allows
	strict  http.RoundTripper // to public addresses only
	ahead   http.RoundTripper // as open, with connections of its own: all of the others may hang
	limiter *rate.Limiter
	turn    chan struct{} // held by who waits for the limiter and may be overtaken
	waiting atomic.Int64
	now     func() time.Time

	mu      sync.Mutex
	origins []string  // that get the log-in
	notTill time.Time // when the server asked to be left alone until
}

// New checks the settings. Nothing is sent.
func New(cfg Config) (*Client, error) {
	if cfg.Rate < 0 || cfg.Burst < 0 || cfg.Timeout < 0 || cfg.MaxBody < 0 || cfg.Retry.Tries < 0 || cfg.Retry.First < 0 || cfg.Retry.MaxWait < 0 {
		return nil, pcm.Errorf(pcm.Invalid, "rate, burst, timeout, bounds and retries can't be negative")
	}
	cfg.Rate = orDefault(cfg.Rate, 10)
	cfg.Burst = orDefault(cfg.Burst, 10)
	cfg.Timeout = orDefault(cfg.Timeout, 30*time.Second)
	cfg.MaxBody = orDefault(cfg.MaxBody, 8<<20)
	cfg.UserAgent = orDefault(cfg.UserAgent, "pcm")
	cfg.Retry.Tries = min(orDefault(cfg.Retry.Tries, 4), maxTries)
	cfg.Retry.First = orDefault(cfg.Retry.First, 500*time.Millisecond)
	cfg.Retry.MaxWait = orDefault(cfg.Retry.MaxWait, 30*time.Second)
	if cfg.MaxBody > 256<<20 {
		return nil, pcm.Errorf(pcm.Invalid, "answers of up to %s are over the bound of 256MiB: data goes through a store", cfg.MaxBody)
	}
	if cfg.Secrets == nil {
		cfg.Secrets, _ = NewSecrets(nil)
	}
	quiet()
	roots, err := readCA(cfg.CA)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, limiter: rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst), turn: make(chan struct{}, 1), now: time.Now}
	strict := newTransport(cfg.Timeout, roots, false)
	c.open, c.strict = strict, strict
	if cfg.AllowPrivate {
		c.open = newTransport(cfg.Timeout, roots, true)
	}
	c.ahead = newTransport(cfg.Timeout, roots, cfg.AllowPrivate)
	for _, o := range cfg.Origins {
		u, err := parseURL(o)
		if err != nil {
			return nil, err
		}
		c.trust(u)
	}
	if c.login, err = newLogin(c, cfg.Login); err != nil {
		return nil, err
	}
	return c, nil
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Close drops idle connections.
func (c *Client) Close() {
	for _, t := range []http.RoundTripper{c.open, c.strict, c.ahead} {
		if t, ok := t.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
}

// Redact blots secrets out of a text that came from the back end: it may repeat them.
func (c *Client) Redact(text string) string { return c.cfg.Secrets.Redact(text) }

// trust lets the log-in go to an origin.
func (c *Client) trust(u *url.URL) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := origin(u); !slices.Contains(c.origins, o) && len(c.origins) < 64 {
		c.origins = append(c.origins, o)
	}
}

func (c *Client) trusts(u *url.URL) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.origins, origin(u))
}

// checkTarget refuses addresses that a request must not go to.
func (c *Client) checkTarget(u *url.URL, anonymous bool) error {
	switch {
	case !anonymous && !c.trusts(u):
		return pcm.Errorf(pcm.Refused, "%s is not at an address of this back end (%s): the log-in is not sent there", bare(u), c.originList())
	case u.Scheme == "http" && !c.cfg.AllowPrivate && (anonymous || c.login.secret()):
		return pcm.Errorf(pcm.Refused, "%s is not HTTPS: secrets and data are not sent that way unless allow_private says that the network is the site's own", bare(u))
	}
	return nil
}

func (c *Client) originList() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return pcm.Clean(fmt.Sprint(c.origins), 200)
}

// Do makes a call, and tries it again where that is safe. The body of the answer
// has been read when it returns.
//
// Where the server answered with a status that is none of r.OK, there is both a
// response and an error: code Refused for 401 and 403, NotFound for 404 and 410,
// Conflict for 409, TooLarge for 413, Busy for 429, Invalid for other refusals,
// Unavailable from 500 on. Code Unavailable is also that of a server which can't be
// reached or gives an answer that is not to be believed; Refused that of
// addresses it must not send us to. [Unsent] tells whether the server may have acted.
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) {
	o, err := prepare(r)
	if err != nil {
		return nil, c.local(err)
	}
	return c.call(ctx, o, nil)
}

// call makes one call. Where take is given, it reads the answer's body if its
// status is a good one, instead of its being kept.
func (c *Client) call(ctx context.Context, o *outgoing, take taker) (*Response, error) {
	if err := c.checkTarget(o.url, o.anonymous); err != nil {
		return nil, c.local(err)
	}
	if !isAhead(ctx) {
		defer c.waiting.Add(-1)
		if c.waiting.Add(1) > maxWaiting {
			return nil, c.local(pcm.Errorf(pcm.Busy, "%d calls wait for %s already", maxWaiting, o.url.Host))
		}
	}
	renewed := false
	for try := 1; ; try++ {
		if err := c.wait(ctx, o); err != nil {
			return nil, err
		}
		resp, f := c.try(ctx, o, try, take)
		if f == nil {
			return resp, nil
		}
		if f.status == http.StatusUnauthorized && !renewed && !o.anonymous && c.login.renew(f.proof) {
			renewed = true // what was refused was not done: any call may be made again
			continue
		}
		pause, again := c.again(f, o, try)
		if !again {
			return resp, c.error(o, f)
		}
		if !sleep(ctx, pause) {
			return resp, c.error(o, f)
		}
	}
}

// again decides whether a try is repeated, and after which pause.
func (c *Client) again(f *failure, o *outgoing, try int) (time.Duration, bool) {
	if try >= c.cfg.Retry.Tries || f.final || !f.unsent && !o.idempotent && f.status != http.StatusTooManyRequests {
		return 0, false
	}
	pause := c.cfg.Retry.First
	for range try - 1 {
		pause = min(2*pause, c.cfg.Retry.MaxWait)
	}
	pause = pause/2 + rand.N(pause/2+1)
	switch f.status {
	case 0, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return pause, true
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if f.after > c.cfg.Retry.MaxWait {
			return 0, false // longer than anybody here is to wait
		}
		return max(pause, f.after), true
	}
	return 0, false
}

type aheadKey struct{}

// Ahead marks calls that go before all others which wait for the rate to allow
// them, or for a connection, however many those are. It is for few calls that can't wait, as of what ends jobs.
func Ahead(ctx context.Context) context.Context { return context.WithValue(ctx, aheadKey{}, true) }

func isAhead(ctx context.Context) bool { return ctx.Value(aheadKey{}) != nil }

// wait holds a call until the rate allows it, and until the server wants calls again.
func (c *Client) wait(ctx context.Context, o *outgoing) error {
	c.mu.Lock()
	rest := c.notTill.Sub(c.now())
	c.mu.Unlock()
	if rest > 0 && !sleep(ctx, rest) {
		return c.error(o, &failure{code: pcm.Busy, text: "the server asked to be left alone for a while, which is longer than this call has", unsent: true, err: ctx.Err()})
	}
	if !isAhead(ctx) { // one of these queues at the limiter, the others behind it
		select {
		case c.turn <- struct{}{}:
			defer func() { <-c.turn }()
		case <-ctx.Done():
		}
	}
	if err := c.limiter.Wait(ctx); err != nil {
		return c.error(o, &failure{code: pcm.Busy, text: fmt.Sprintf("the rate of %g calls a second leaves no room for it within its deadline", c.cfg.Rate), unsent: true, err: ctx.Err()})
	}
	return nil
}

// sleep is false if ctx ends before d is over, or would.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

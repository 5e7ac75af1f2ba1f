package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/jointcloud/pcm"
)

// Bounds of tokens that a log-in gives.
const (
	maxToken    = 16 << 10
	maxTokenAge = 24 * time.Hour
	renewBefore = 2 * time.Minute  // or a fifth of its life, if that is less
	loginPause  = 15 * time.Second // after a log-in that was refused: accounts get locked
)

// token is what a log-in gave.
type token struct {
	value   string
	expires time.Time // zero: not said
}

// grant gets a new token.
type grant interface {
	token(ctx context.Context) (token, error)
	describe() string
}

// tokens keeps the token of a log-in, and renews it before it expires. One call
// at a time logs in, the others wait for it.
type tokens struct {
	s            *Secrets
	grant        grant
	url          *url.URL
	head, prefix string
	now          func() time.Time
	turn         chan struct{}

	mu      sync.Mutex
	current token
	renewAt time.Time
	failed  error // of the last log-in, if it was refused
	until   time.Time
}

func (t *tokens) apply(ctx context.Context, req *http.Request, _ []byte) (string, error) {
	v, err := t.get(ctx)
	if err != nil {
		return "", err
	}
	req.Header.Set(t.head, t.prefix+v)
	return v, nil
}

// known is the token that is good now, or why there is none.
func (t *tokens) known() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	switch {
	case t.current.value != "" && now.Before(t.renewAt):
		return t.current.value, nil
	case t.failed != nil && now.Before(t.until):
		return "", t.failed
	}
	return "", nil
}

func (t *tokens) get(ctx context.Context) (string, error) {
	if v, err := t.known(); v != "" || err != nil {
		return v, err
	}
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return "", pcm.Errorf(pcm.Unavailable, "another call is logging in, and takes long: %w", ctx.Err())
	}
	if v, err := t.known(); v != "" || err != nil {
		return v, err
	}
	fresh, err := t.grant.token(ctx)
	if err == nil && (fresh.value == "" || len(fresh.value) > maxToken || !httpguts.ValidHeaderFieldValue(fresh.value)) {
		err = pcm.Errorf(pcm.Unavailable, "the log-in at %s gave no usable token", bare(t.url))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if err != nil {
		if t.failed = nil; pcm.ErrorCode(err) != pcm.Unavailable && pcm.ErrorCode(err) != pcm.Busy {
			t.failed, t.until = err, now.Add(loginPause)
		}
		if t.current.value != "" && now.Before(t.current.expires) {
			return t.current.value, nil // due, but still good
		}
		return "", err
	}
	t.s.hide(fresh.value)
	life := maxTokenAge
	if !fresh.expires.IsZero() {
		life = min(fresh.expires.Sub(now), maxTokenAge)
	}
	if life <= 0 {
		return "", pcm.Errorf(pcm.Unavailable, "the log-in at %s gave a token that expired at %s: check this machine's clock", bare(t.url), fresh.expires.UTC().Format(time.RFC3339))
	}
	t.current, t.failed = fresh, nil
	t.renewAt = now.Add(life - min(renewBefore, life/5))
	return fresh.value, nil
}

// renew forgets a token that was refused, unless there is a newer one by now.
func (t *tokens) renew(refused string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current.value == refused {
		t.current = token{}
	}
	return refused != ""
}

func (t *tokens) describe() string { return t.grant.describe() }
func (t *tokens) header() string   { return t.head }
func (t *tokens) secret() bool     { return true }

// clock is read when it is needed, so that tests can set it.
func (c *Client) clock() time.Time { return c.now() }

// loginCall sends a request for a token. It carries no log-in, only what the
// grant puts in it, follows no redirect, and its bodies are never shown.
func (c *Client) loginCall(ctx context.Context, r Request) (*Response, error) {
	r.Anonymous = true
	o, err := prepare(r)
	if err != nil {
		return nil, err
	}
	o.url.RawPath = canonicalPath(o.url)
	if err := c.limiter.Wait(ctx); err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "no time is left for the log-in: %w", err)
	}
	resp, f := c.hop(context.WithValue(Ahead(ctx), loginKey{}, true), ctx, o, 1, false, nil)
	if f == nil {
		return resp, nil
	}
	if f.status == http.StatusUnauthorized || f.status == http.StatusForbidden || f.status == http.StatusBadRequest {
		f.code, f.text = pcm.Refused, "check "+c.login.describe()
	}
	return nil, c.error(o, f)
}

// at finds a value by a path of names, "payload.token".
func at(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// lifetime reads a number of seconds, as a number or in a string.
func lifetime(v any, now time.Time) time.Time {
	n, _ := v.(json.Number)
	if s, ok := v.(string); ok {
		n = json.Number(s)
	}
	seconds, err := n.Float64()
	if err != nil || !(seconds > 0) {
		return time.Time{}
	}
	return now.Add(time.Duration(min(seconds, maxTokenAge.Seconds()) * float64(time.Second)))
}

// oauth gets tokens by client credentials.
type oauth struct {
	c *Client
	l Login
}

func (g *oauth) describe() string {
	return "client " + g.l.ClientID + " and secret " + g.c.cfg.Secrets.describe(g.l.ClientSecret)
}

func (g *oauth) token(ctx context.Context) (token, error) {
	secret, err := g.c.cfg.Secrets.Get(g.l.ClientSecret)
	if err != nil {
		return token{}, err
	}
	form, header := url.Values{"grant_type": {"client_credentials"}}, http.Header{"Accept": {"application/json"}}
	if len(g.l.Scopes) > 0 {
		form.Set("scope", strings.Join(g.l.Scopes, " "))
	}
	if g.l.Audience != "" {
		form.Set("audience", g.l.Audience)
	}
	if g.l.InBody {
		form.Set("client_id", g.l.ClientID)
		form.Set("client_secret", secret)
	} else {
		pair := base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(g.l.ClientID) + ":" + url.QueryEscape(secret)))
		g.c.cfg.Secrets.hide(pair)
		header.Set("Authorization", "Basic "+pair)
	}
	resp, err := g.c.loginCall(ctx, Request{Method: http.MethodPost, URL: g.l.URL, Header: header, Body: form})
	if err != nil {
		return token{}, err
	}
	v, err := resp.JSON()
	if err != nil {
		return token{}, err
	}
	value, _ := at(v, "access_token").(string)
	if kind, ok := at(v, "token_type").(string); ok && !strings.EqualFold(kind, "bearer") {
		return token{}, pcm.Errorf(pcm.Unavailable, "the log-in gave a token of type %.32q, not bearer", kind)
	}
	return token{value, lifetime(at(v, "expires_in"), g.c.now())}, nil
}

// tokenCall gets tokens by a call of the back end's own.
type tokenCall struct {
	c *Client
	l Login
}

func (g *tokenCall) describe() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(secretNames(g.l.Request.Body))) {
		all = append(all, g.c.cfg.Secrets.describe(name))
	}
	switch len(all) {
	case 0:
		return "the log-in's call"
	case 1:
		return "secret " + all[0]
	}
	return "secrets " + strings.Join(all, ", ")
}

func (g *tokenCall) token(ctx context.Context) (token, error) {
	r := *g.l.Request
	var err error
	if r.Body, err = g.c.cfg.Secrets.fill(r.Body); err != nil {
		return token{}, err
	}
	if r.Method == "" {
		r.Method = http.MethodPost
	}
	resp, err := g.c.loginCall(ctx, r)
	if err != nil {
		return token{}, err
	}
	value, life, err := g.l.Find(resp)
	if value == "" || err != nil {
		why := "gave no token"
		if err != nil {
			why += ": " + err.Error()
		} else if w := words(resp.Body, resp.Header.Get("Content-Type")); w != "" {
			why += ": " + w
		}
		return token{}, pcm.Errorf(pcm.Refused, "the log-in at %s %s: check %s", resp.URL, pcm.Clean(g.c.Redact(why), maxWords), g.describe())
	}
	t := token{value: value}
	if life > 0 {
		t.expires = g.c.now().Add(life)
	}
	return t, nil
}

// secretName is the name in {"secret": NAME}; "" of anything else.
func secretName(v any) string {
	if m, ok := v.(map[string]any); ok && len(m) == 1 {
		name, _ := m["secret"].(string)
		return name
	}
	return ""
}

// secretNames finds the secrets that a body refers to.
func secretNames(v any) map[string]bool {
	names := map[string]bool{}
	if name := secretName(v); name != "" {
		names[name] = true
		return names
	}
	switch v := v.(type) {
	case map[string]any:
		for _, inner := range v {
			maps.Copy(names, secretNames(inner))
		}
	case []any:
		for _, inner := range v {
			maps.Copy(names, secretNames(inner))
		}
	}
	return names
}

// fill puts secrets where a body refers to them. The body itself is not changed.
func (s *Secrets) fill(v any) (any, error) {
	if name := secretName(v); name != "" {
		return s.Get(name)
	}
	var err error
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, inner := range v {
			if out[k], err = s.fill(inner); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			if out[i], err = s.fill(inner); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}

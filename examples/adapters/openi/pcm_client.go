package main

// The client of the described API: log-in, bounds, rate, retries, pages.

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	maxAnswer = 16 << 20
	maxPages  = 1000
	maxItems  = 50_000
)

// client makes calls of a description.
type client struct {
	d       *Described
	vars    Vars // settings
	secrets map[string]string
	http    *http.Client

	mu      sync.Mutex
	next    time.Time // when the next call may be made
	token   string
	expires time.Time
	catalog map[string]string // of Keystone: URLs by service
}

func newClient(d *Described, settings, secrets map[string]string) *client {
	values := map[string]any{}
	for k, v := range settings {
		values[k] = v
	}
	return &client{d: d, vars: Vars{"settings": values}, secrets: secrets, http: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > 3 || r.URL.Host != via[0].URL.Host || r.URL.Scheme != via[0].URL.Scheme {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}}
}

// answer is what was said to a call.
type answer struct {
	status int
	header map[string]any
	body   any
}

func (a *answer) in(v Vars) Vars {
	return v.with(Vars{"body": a.body, "status": int64(a.status), "header": a.header})
}

func milli(ms, otherwise int64) time.Duration {
	if ms == 0 {
		ms = otherwise
	}
	return time.Duration(ms) * time.Millisecond
}

// wait holds the rate.
func (c *client) wait(ctx context.Context) error {
	rate := c.d.Limits.Rate
	if rate == 0 {
		rate = 10
	}
	burst := max(c.d.Limits.Burst, 1)
	if c.d.Limits.Burst == 0 {
		burst = 20
	}
	c.mu.Lock()
	now := time.Now()
	gap := time.Duration(float64(time.Second) / rate)
	if earliest := now.Add(-time.Duration(burst) * gap); c.next.Before(earliest) {
		c.next = earliest
	}
	c.next = c.next.Add(gap)
	wait := c.next.Sub(now)
	c.mu.Unlock()
	return sleep(ctx, wait)
}

// call makes a call; its variables are the settings and v.
func (c *client) call(ctx context.Context, k *Call, v Vars) (*answer, error) {
	return c.send(ctx, k, v, nil, "")
}

func (c *client) send(ctx context.Context, k *Call, v Vars, page map[string]any, to string) (*answer, error) {
	v = c.vars.with(v)
	tries := c.d.Limits.Tries
	if tries == 0 {
		tries = 5
	}
	repeat := slices.Contains([]string{"", "GET", "HEAD", "PUT", "DELETE"}, k.Request.Method)
	if k.Request.Repeat != nil {
		repeat = *k.Request.Repeat
	}
	relogged := false
	for try := 1; ; try++ {
		a, err := c.once(ctx, k, v, page, to)
		var e *callError
		if !errors.As(err, &e) {
			return a, err
		}
		if e.status == 401 && !relogged && c.d.Login.Kind != "none" {
			relogged = true
			c.mu.Lock()
			c.token = ""
			c.mu.Unlock()
			continue
		}
		again := e.code == codes.Unavailable && (repeat || e.unsent) || e.status == 429
		if !again || try >= tries {
			return a, err
		}
		pause := time.Duration(1<<min(try, 6)) * 100 * time.Millisecond
		if sleep(ctx, pause/2+rand.N(pause)) != nil {
			return a, err
		}
	}
}

func (c *client) once(ctx context.Context, k *Call, v Vars, page map[string]any, to string) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, milli(c.d.Limits.Timeout, 30_000))
	defer cancel()
	r, err := c.request(ctx, &k.Request, v, page, to)
	if err != nil {
		return nil, err
	}
	if err := c.logIn(ctx, r); err != nil {
		return nil, err
	}
	if err := c.wait(ctx); err != nil {
		return nil, &callError{code: codes.DeadlineExceeded, text: "there was no time for the call", unsent: true}
	}
	resp, err := c.http.Do(r)
	if err != nil {
		var op interface{ Timeout() bool }
		unsent := strings.Contains(err.Error(), "connection refused") && !(errors.As(err, &op) && op.Timeout())
		return nil, &callError{code: codes.Unavailable, text: "the back end can't be reached: " + c.redact(err.Error()), unsent: unsent}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, &callError{code: codes.Unavailable, text: "the answer broke off: " + c.redact(err.Error())}
	}
	if len(raw) > maxAnswer {
		return nil, &callError{code: codes.Internal, text: fmt.Sprintf("the answer is over %d bytes", maxAnswer)}
	}
	return c.judge(k, v, resp, raw)
}

// judge says what an answer means.
func (c *client) judge(k *Call, v Vars, resp *http.Response, raw []byte) (*answer, error) {
	a := &answer{status: resp.StatusCode, header: map[string]any{}}
	for name := range resp.Header {
		a.header[strings.ToLower(name)] = resp.Header.Get(name)
	}
	var broken error
	if k.Request.Answer == "text" {
		a.body = string(raw)
	} else if len(bytes.TrimSpace(raw)) > 0 {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if broken = d.Decode(&a.body); broken != nil {
			a.body = string(raw)
		}
		a.body = plain(a.body)
	}
	said := a.in(v)
	is := func(x Value) bool {
		b, err := x.eval(said)
		yes, ok := b.(bool)
		return err == nil && ok && yes
	}
	why, _ := k.Reason.text(said)
	if why == "" {
		why = fmt.Sprintf("HTTP %d", a.status)
	}
	e := &callError{text: "the back end answers: " + c.redact(why), status: a.status, unsent: a.status/100 == 4}
	good := a.status/100 == 2 && len(k.OK) == 0 || slices.Contains(k.OK, a.status)
	missing := slices.Contains(k.Missing, a.status) || len(k.Missing) == 0 && a.status == 404
	switch {
	case missing && !slices.Contains(k.OK, a.status), k.Absent != nil && is(k.Absent):
		e.code, e.absent, e.unsent = codes.NotFound, true, true
		return a, e
	case good && k.Failed != nil && is(k.Failed):
		e.code, e.unsent = codes.FailedPrecondition, true
		return a, e
	case good && broken != nil:
		return a, &callError{code: codes.Internal, text: "the answer is no JSON", status: a.status}
	case good:
		return a, nil
	}
	switch {
	case a.status == 401:
		e.code = codes.Unauthenticated
	case a.status == 403:
		e.code = codes.PermissionDenied
	case a.status == 409:
		e.code = codes.Aborted
	case a.status == 429:
		e.code = codes.ResourceExhausted
	case a.status >= 500:
		e.code, e.unsent = codes.Unavailable, a.status == 503
	default:
		e.code = codes.InvalidArgument
	}
	return a, e
}

// redact keeps secrets out of what is shown, and makes one line of it.
func (c *client) redact(s string) string {
	for _, v := range c.secrets {
		if len(v) > 3 {
			s = strings.ReplaceAll(strings.ReplaceAll(s, v, "***"), url.QueryEscape(v), "***")
		}
	}
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "")), " ")
	return s[:min(len(s), 240)]
}

// server is the base URL of that name.
func (c *client) server(name string) (string, error) {
	if name == "" {
		name = "api"
	}
	if u := c.catalog[name]; u != "" {
		return strings.TrimSuffix(u, "/"), nil
	}
	u, err := c.d.Servers[name].text(c.vars)
	if err != nil || u == "" {
		return "", &callError{code: codes.Internal, text: fmt.Sprintf("there is no server %s: %v", name, err), unsent: true}
	}
	return strings.TrimSuffix(u, "/"), nil
}

func (c *client) request(ctx context.Context, r *Request, v Vars, page map[string]any, to string) (*http.Request, error) {
	fail := func(err error) error {
		return &callError{code: codes.InvalidArgument, text: err.Error(), unsent: true}
	}
	if c.d.Login.Kind == "keystone" && c.token == "" {
		if err := c.renew(ctx); err != nil {
			return nil, err
		}
	}
	base, err := c.server(r.Server)
	if err != nil {
		return nil, err
	}
	path, err := r.Path.text(v)
	if err != nil {
		return nil, fail(err)
	}
	if path != "" && path[0] != '/' && path[0] != '?' {
		path = "/" + path
	}
	u, err := url.Parse(base + path)
	if err != nil {
		return nil, fail(err)
	}
	q := u.Query()
	for k, x := range r.Query {
		value, err := x.eval(v)
		if err != nil {
			return nil, fail(err)
		}
		if value != nil {
			q.Set(k, asText(value))
		}
	}
	var body any
	if r.Body != nil {
		if body, err = r.Body.eval(v); err != nil {
			return nil, fail(err)
		}
	}
	if m, ok := body.(map[string]any); ok && page != nil && page["in"] == "body" {
		for k, x := range page["params"].(map[string]any) {
			m[k] = x
		}
	} else if page != nil {
		for k, x := range page["params"].(map[string]any) {
			q.Set(k, asText(x))
		}
	}
	u.RawQuery = q.Encode()
	if to != "" {
		next, err := u.Parse(to)
		if err != nil || next.Host != u.Host || next.Scheme != u.Scheme {
			return nil, &callError{code: codes.Internal, text: "a list goes on at another address than its own", unsent: true}
		}
		u = next
	}
	var content []byte
	kind := ""
	switch {
	case r.Form != nil:
		form := url.Values{}
		for k, x := range r.Form {
			value, err := x.text(v)
			if err != nil {
				return nil, fail(err)
			}
			form.Set(k, value)
		}
		content, kind = []byte(form.Encode()), "application/x-www-form-urlencoded"
	case r.Body != nil:
		content, kind = []byte(encode(c.fill(body))), "application/json"
	}
	method := r.Method
	if method == "" {
		method = "GET"
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(content))
	if err != nil {
		return nil, fail(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if r.Answer != "text" {
		req.Header.Set("Accept", "application/json")
	}
	for k, x := range r.Headers {
		value, err := x.eval(v)
		if err != nil {
			return nil, fail(err)
		}
		if value != nil {
			req.Header.Set(k, asText(value))
		}
	}
	return req, nil
}

// fill puts secrets where a body of the log-in names them.
func (c *client) fill(body any) any {
	m, ok := body.(map[string]any)
	if !ok {
		return body
	}
	if name, ok := m["secret"].(string); ok && len(m) == 1 {
		return c.secrets[name]
	}
	all := map[string]any{}
	for k, v := range m {
		all[k] = c.fill(v)
	}
	return all
}

// logIn adds what shows who asks.
func (c *client) logIn(ctx context.Context, r *http.Request) error {
	l := &c.d.Login
	switch l.Kind {
	case "", "none":
		return nil
	case "basic":
		name, err := l.Username.text(c.vars)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(name+":"+c.secrets[l.Password])))
		return nil
	case "api-key":
		if l.In == "query" {
			q := r.URL.Query()
			q.Set(l.As, c.secrets[l.Key])
			r.URL.RawQuery = q.Encode()
		} else {
			r.Header.Set(l.As, c.secrets[l.Key])
		}
		return nil
	case "bearer":
		if l.Token != "" {
			r.Header.Set("Authorization", "Bearer "+c.secrets[l.Token])
			return nil
		}
	case "oauth2", "keystone":
	default:
		return sign(ctx, c, r)
	}
	if ctx.Value(loggingIn{}) != nil {
		return nil
	}
	c.mu.Lock()
	token, good := c.token, c.token != "" && time.Now().Before(c.expires)
	c.mu.Unlock()
	if !good {
		if err := c.renew(ctx); err != nil {
			return err
		}
		token = c.token
	}
	if l.Kind == "keystone" {
		r.Header.Set("X-Auth-Token", token)
	} else {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return nil
}

type loggingIn struct{}

// renew gets a token.
func (c *client) renew(ctx context.Context) error {
	l := &c.d.Login
	ctx = context.WithValue(ctx, loggingIn{}, true)
	token, seconds := "", 3600.0
	switch l.Kind {
	case "keystone":
		t, catalog, until, err := c.keystone(ctx)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.catalog = catalog
		c.mu.Unlock()
		token, seconds = t, time.Until(until).Seconds()
	case "oauth2":
		at, err := l.URL.text(c.vars)
		if err != nil {
			return err
		}
		id, err := l.ClientID.text(c.vars)
		if err != nil {
			return err
		}
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {c.secrets[l.Secret]}}
		if len(l.Scopes) > 0 {
			form.Set("scope", strings.Join(l.Scopes, " "))
		}
		body, _, err := c.post(ctx, at, "application/x-www-form-urlencoded", []byte(form.Encode()))
		if err != nil {
			return err
		}
		token = asText(path(body, "access_token"))
		if s, ok := number(path(body, "expires_in")); ok {
			seconds = s
		}
	default:
		a, err := c.once(ctx, &Call{Request: *l.Request}, c.vars, nil, "")
		if err != nil {
			return err
		}
		if token, err = l.Find.text(a.in(c.vars)); err != nil {
			return err
		}
		if v, err := l.Expires.eval(a.in(c.vars)); err == nil {
			if s, ok := number(v); ok {
				seconds = s
			}
		}
	}
	if token == "" {
		return &callError{code: codes.Unauthenticated, text: "the log-in gave no token", unsent: true}
	}
	c.mu.Lock()
	c.token, c.expires = token, time.Now().Add(time.Duration(seconds*0.9*float64(time.Second)))
	c.mu.Unlock()
	return nil
}

// post is a call of the log-in itself.
func (c *client) post(ctx context.Context, to, kind string, content []byte) (any, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, "POST", to, bytes.NewReader(content))
	if err != nil {
		return nil, nil, &callError{code: codes.Internal, text: "the address of the log-in can't be read", unsent: true}
	}
	r.Header.Set("Content-Type", kind)
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, nil, &callError{code: codes.Unavailable, text: "the log-in can't be reached: " + c.redact(err.Error()), unsent: true}
	}
	defer resp.Body.Close()
	var body any
	d := json.NewDecoder(io.LimitReader(resp.Body, 1<<20))
	d.UseNumber()
	err = d.Decode(&body)
	if resp.StatusCode/100 != 2 || err != nil {
		return nil, nil, &callError{code: codes.Unauthenticated, text: fmt.Sprintf("the log-in answers HTTP %d", resp.StatusCode), status: resp.StatusCode, unsent: true}
	}
	return plain(body), resp.Header, nil
}

// keystone gets a token of Keystone v3, and the addresses in its catalogue.
func (c *client) keystone(ctx context.Context) (token string, catalog map[string]string, until time.Time, err error) {
	l := &c.d.Login
	texts := map[string]string{}
	for name, x := range map[string]Value{"url": l.URL, "user": l.Username, "domain": l.Domain, "project": l.Project, "app": l.AppID, "region": l.Region} {
		if texts[name], err = x.text(c.vars); err != nil {
			return "", nil, until, err
		}
	}
	if texts["domain"] == "" {
		texts["domain"] = "Default"
	}
	domain := map[string]any{"name": texts["domain"]}
	auth := map[string]any{"identity": map[string]any{"methods": []any{"password"}, "password": map[string]any{
		"user": map[string]any{"name": texts["user"], "domain": domain, "password": c.secrets[l.Password]}}}}
	if texts["app"] != "" {
		auth["identity"] = map[string]any{"methods": []any{"application_credential"}, "application_credential": map[string]any{"id": texts["app"], "secret": c.secrets[l.Secret]}}
	} else if texts["project"] != "" {
		auth["scope"] = map[string]any{"project": map[string]any{"name": texts["project"], "domain": domain}}
	}
	body, header, err := c.post(ctx, strings.TrimSuffix(texts["url"], "/")+"/auth/tokens", "application/json", []byte(encode(map[string]any{"auth": auth})))
	if err != nil {
		return "", nil, until, err
	}
	catalog = map[string]string{}
	services, _ := path(body, "token", "catalog").([]any)
	for _, s := range services {
		ends, _ := path(s, "endpoints").([]any)
		for _, e := range ends {
			if path(e, "interface") == "public" && (texts["region"] == "" || path(e, "region") == texts["region"]) && path(s, "type") == l.Service {
				catalog["api"] = asText(path(e, "url"))
			}
		}
	}
	until, err = time.Parse(time.RFC3339, asText(path(body, "token", "expires_at")))
	if err != nil {
		until = time.Now().Add(time.Hour)
	}
	return header.Get("X-Subject-Token"), catalog, until, nil
}

// list calls each for the items of a list, until it has seen enough.
func (c *client) list(ctx context.Context, l *List, v Vars, each func(item any) (enough bool)) error {
	p := l.Paging
	size, seen, marker := 100, 0, ""
	if p != nil && p.Limit > 0 {
		size = p.Limit
	}
	for n := 0; ; n++ {
		if n >= maxPages || seen >= maxItems {
			return &callError{code: codes.Internal, text: "a list doesn't end"}
		}
		var page map[string]any
		to := ""
		if p != nil {
			params := map[string]any{}
			page = map[string]any{"in": p.In, "params": params}
			if p.Size != "" {
				params[p.Size] = int64(size)
			}
			switch p.Kind {
			case "offset":
				params[p.Param] = int64(seen)
			case "page":
				params[p.Param] = int64(p.First + n)
			case "marker":
				if marker != "" {
					params[p.Param] = marker
				}
			default:
				to = marker
			}
		}
		a, err := c.send(ctx, &l.Call, v, page, to)
		if err != nil {
			return err
		}
		said := a.in(c.vars.with(v))
		got, err := l.Items.eval(said)
		if err != nil {
			return &callError{code: codes.Unavailable, text: "a list is not as described: " + err.Error()}
		}
		items, ok := got.([]any)
		if !ok && got != nil {
			return &callError{code: codes.Unavailable, text: "a list is not as described: its items are no list"}
		}
		for _, item := range items {
			if each(item) {
				return nil
			}
		}
		seen += len(items)
		if p == nil || len(items) == 0 {
			return nil
		}
		total := int64(-1)
		if t, err := p.Total.eval(said); err == nil {
			if i, ok := t.(int64); ok {
				total = i
			}
		}
		last := marker
		switch p.Kind {
		case "offset", "page":
			if total >= 0 && int64(seen) >= total || total < 0 && len(items) < size {
				return nil
			}
			continue
		case "link":
			marker = nextLink(asText(a.header["link"]))
		case "url":
			marker, _ = p.Marker.text(said)
		default:
			marker, _ = p.Marker.text(said.with(Vars{"item": items[len(items)-1]}))
		}
		if marker == "" {
			return nil
		}
		if marker == last {
			return &callError{code: codes.Unavailable, text: "a list goes on with the page that it came from"}
		}
	}
}

func nextLink(header string) string {
	for _, part := range strings.Split(header, ",") {
		target, params, ok := strings.Cut(strings.TrimSpace(part), ">")
		if ok && strings.HasPrefix(target, "<") && strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
			return target[1:]
		}
	}
	return ""
}

// escape makes one segment of a path of a text.
func escape(x any) any {
	s := asText(x)
	if s == "" || s == "." || s == ".." {
		wrong("%q can't be a part of a path", s)
	}
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

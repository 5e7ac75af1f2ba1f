package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
)

// try sends a request once, and follows where it is sent to.
func (c *Client) try(ctx context.Context, o *outgoing, n int, take taker) (*Response, *failure) {
	tctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	if o.moved != nil {
		cancel()
		tctx, cancel = watchdog(ctx, c.cfg.Timeout, o.moved)
	}
	defer cancel()
	hop, elsewhere := o, false
	for redirects := 0; ; redirects++ {
		resp, f := c.hop(tctx, ctx, hop, n, elsewhere, take)
		if f == nil || f.location == "" {
			return resp, f
		}
		next, err := c.redirected(hop, f.location)
		switch {
		case err != nil:
			return resp, &failure{code: pcm.Refused, status: f.status, final: true, text: err.Error()}
		case redirects >= maxRedirects:
			return resp, &failure{code: pcm.Refused, status: f.status, final: true, text: fmt.Sprintf("it sends us on more than %d times", maxRedirects)}
		}
		elsewhere = elsewhere || origin(next.url) != origin(hop.url) && !c.trusts(next.url)
		hop = next
	}
}

// redirected is the request to where the server sends us: nothing but a GET, and
// at another address without the log-in and without what the description adds.
func (c *Client) redirected(o *outgoing, location string) (*outgoing, error) {
	u, err := o.url.Parse(location)
	if err != nil {
		return nil, pcm.Errorf(pcm.Refused, "it sends us to an address that is none")
	}
	if u, err = parseURL(u.String()); err != nil {
		return nil, pcm.Errorf(pcm.Refused, "it sends us on: %w", err)
	}
	if o.url.Scheme == "https" && u.Scheme == "http" {
		return nil, pcm.Errorf(pcm.Refused, "it sends us from HTTPS to HTTP, at %s", bare(u))
	}
	next := *o
	next.url = u
	if origin(u) != origin(o.url) {
		next.anonymous = true
		next.header = http.Header{}
		for _, k := range []string{"Accept", "Range", "If-Match"} {
			if v := o.header.Get(k); v != "" {
				next.header.Set(k, v)
			}
		}
	}
	if !next.anonymous {
		q, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			return nil, pcm.Errorf(pcm.Refused, "it sends us to an address with no valid query, at %s", bare(u))
		}
		u.RawQuery, u.RawPath = canonicalQuery(q), canonicalPath(u)
	}
	return &next, c.checkTarget(u, next.anonymous)
}

// hop sends one request and reads its answer.
func (c *Client) hop(ctx, caller context.Context, o *outgoing, n int, elsewhere bool, take taker) (*Response, *failure) {
	req := o.build()
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	req.Header.Set("Accept-Encoding", "gzip")
	if take != nil {
		req.Header.Set("Accept-Encoding", "identity") // a stream comes as it is stored
	}
	var proof string
	if !o.anonymous {
		var err error
		if proof, err = c.login.apply(ctx, req, o.body); err != nil {
			e := pcm.AsError(err)
			return nil, &failure{code: e.Code, text: "can't log in: " + e.Message, unsent: true, final: true, err: ctx.Err()}
		}
	}
	connected := false
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }}))
	x := c.newExchange(req, o, n)
	transport := c.open
	switch {
	case elsewhere:
		transport = c.strict
	case isAhead(ctx):
		transport = c.ahead
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		f := c.netFailure(ctx, caller, o, err, !connected)
		c.trace(x, nil, c.error(o, f))
		return nil, f
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 {
		f := &failure{code: pcm.Unavailable, status: resp.StatusCode, final: true, text: "it wants another protocol"}
		c.trace(x, nil, c.error(o, f))
		return nil, f
	}
	out := &Response{Status: resp.StatusCode, Header: resp.Header, URL: bare(req.URL)}
	good := resp.StatusCode/100 == 2 || slices.Contains(o.ok, resp.StatusCode)
	if take != nil && good {
		f := take(resp)
		if f != nil && ctx.Err() != nil {
			cut := c.netFailure(ctx, caller, o, ctx.Err(), false)
			f.text, f.final, f.err = f.text+": "+cut.text, f.final || cut.final, cut.err
		}
		if f != nil {
			f.status = 0 // it is not the status that is wrong
			c.trace(x, out, c.error(o, f))
		} else {
			c.trace(x, out, nil)
		}
		return out, f
	}
	out.Body, err = readBody(resp, int64(c.cfg.MaxBody))
	if err != nil {
		f := c.bodyFailure(ctx, caller, o, err)
		c.trace(x, out, c.error(o, f))
		return nil, f
	}
	var f *failure
	if !good {
		f = c.statusFailure(out, o, resp)
		f.proof = proof
		c.trace(x, out, c.error(o, f))
		return out, f
	}
	c.trace(x, out, nil)
	return out, nil
}

// statusFailure says what a bad status means.
func (c *Client) statusFailure(out *Response, o *outgoing, resp *http.Response) *failure {
	f := &failure{status: out.Status, words: pcm.Clean(c.Redact(words(out.Body, out.Header.Get("Content-Type"))), maxWords), skew: c.skew(resp)}
	switch s := out.Status; {
	case s >= 300 && s < 400 && resp.Header.Get("Location") != "" && s != http.StatusNotModified:
		if o.method == http.MethodGet || o.method == http.MethodHead {
			f.location = resp.Header.Get("Location")
		}
		f.code, f.final, f.text = pcm.Refused, true, "it sends us to another address, which is followed for GET only"
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusProxyAuthRequired:
		f.code, f.final, f.unsent = pcm.Refused, true, true
		f.text = "the log-in is not accepted: check " + c.login.describe()
		if s == http.StatusForbidden {
			f.text = "this is not allowed to the log-in: check " + c.login.describe() + ", and what it may do"
		}
		switch {
		case resp.Request.Context().Value(loginKey{}) != nil:
			f.text = "check " + c.login.describe()
		case o.anonymous:
			f.text = "the address is not, or no longer, valid"
		}
	case s == http.StatusNotFound, s == http.StatusGone:
		f.code, f.unsent = pcm.NotFound, true
	case s == http.StatusConflict:
		f.code = pcm.Conflict
	case s == http.StatusRequestEntityTooLarge:
		f.code, f.unsent = pcm.TooLarge, true
	case s == http.StatusTooManyRequests:
		f.code, f.unsent = pcm.Busy, true
		c.retryAfter(f, resp)
	case s == http.StatusServiceUnavailable:
		f.code = pcm.Unavailable
		c.retryAfter(f, resp)
	case s >= 500, s == http.StatusRequestTimeout:
		f.code = pcm.Unavailable
	default:
		f.code, f.unsent = pcm.Invalid, s >= 400
	}
	return f
}

// retryAfter reads how long the server wants to be left alone, and holds back
// all calls until then, though no longer than the bound.
func (c *Client) retryAfter(f *failure, resp *http.Response) {
	text := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 {
		f.after = time.Duration(min(seconds, 1e9) * float64(time.Second))
	} else if at, err := http.ParseTime(text); err == nil {
		f.after = at.Sub(c.now())
	}
	if f.after <= 0 {
		return
	}
	till := c.now().Add(min(f.after, c.cfg.Retry.MaxWait))
	c.mu.Lock()
	defer c.mu.Unlock()
	if till.After(c.notTill) {
		c.notTill = till
	}
}

// skew is how far the server's clock is from ours, where that may matter.
func (c *Client) skew(resp *http.Response) time.Duration {
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0
	}
	if d := c.now().Sub(at).Round(time.Second); d.Abs() > 4*time.Minute {
		return d
	}
	return 0
}

// netFailure says what a broken connection means.
func (c *Client) netFailure(ctx, caller context.Context, o *outgoing, err error, unsent bool) *failure {
	f := &failure{code: pcm.Unavailable, unsent: unsent, err: caller.Err()}
	var e *pcm.Error
	var long interface{ Timeout() bool }
	var certificate *tls.CertificateVerificationError
	switch {
	case caller.Err() != nil:
		f.text, f.final = "it was given up: "+caller.Err().Error(), true
	case errors.As(err, &e):
		f.code, f.text, f.final = e.Code, e.Message, true // of the guard
	case errors.As(err, &certificate):
		f.text, f.final = pcm.Clean(err.Error(), maxWords)+": if the site has an authority of its own, name the file of its certificate under ca", true
	case ctx.Err() != nil, errors.As(err, &long) && long.Timeout():
		f.text = fmt.Sprintf("it does not answer within %s", c.cfg.Timeout)
		if o.moved != nil {
			f.text = fmt.Sprintf("it moves less than %s in %s", pcm.Bytes(minProgress), c.cfg.Timeout)
		}
	default:
		f.text = pcm.Clean(err.Error(), maxWords)
	}
	return f
}

// bodyFailure says what a body means that can't be read.
func (c *Client) bodyFailure(ctx, caller context.Context, o *outgoing, err error) *failure {
	f := c.netFailure(ctx, caller, o, err, false)
	var e *pcm.Error
	if errors.As(err, &e) {
		return f
	}
	if !f.final && ctx.Err() != nil {
		f.text = fmt.Sprintf("its answer did not end within %s", c.cfg.Timeout)
	} else if !f.final {
		f.text = "its answer was cut short: " + f.text
	}
	return f
}

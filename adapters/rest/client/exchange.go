package client

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
)

const maxShown = 16 << 10 // bytes of a body in a trace

// Exchange is a request and its answer as people may see them: secrets are
// blotted out, bodies are cut after 16 KiB.
type Exchange struct {
	Try            int // of this call, from 1
	Method, URL    string
	RequestHeader  http.Header
	RequestBody    string
	Status         int // 0: no answer
	ResponseHeader http.Header
	ResponseBody   string
	Took           time.Duration
	Err            string
}

// secretHeaders hold what proves who we are.
var secretHeaders = []string{"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Auth-Token", "X-Subject-Token", "X-Security-Token",
	"X-Amz-Security-Token", "X-Obs-Security-Token", "X-Api-Key", "Api-Key", "Private-Token"}

// loginKey marks requests whose bodies are credentials.
type loginKey struct{}

func (c *Client) newExchange(req *http.Request, o *outgoing, try int) *traced {
	if c.cfg.Trace == nil {
		return nil
	}
	return &traced{began: time.Now(), private: req.Context().Value(loginKey{}) != nil, Exchange: c.show(req, o, try)}
}

// traced is an exchange in progress.
type traced struct {
	Exchange
	began   time.Time
	private bool
}

// show is a request for people.
func (c *Client) show(req *http.Request, o *outgoing, try int) Exchange {
	x := Exchange{Try: try, Method: req.Method, URL: c.Redact(showURL(req.URL)), RequestHeader: c.showHeader(req.Header), RequestBody: c.showBody(o.body)}
	if req.Context().Value(loginKey{}) != nil {
		x.RequestBody = hidden
	}
	return x
}

func showURL(u *url.URL) string {
	shown := *u
	shown.User = nil
	return shown.String()
}

func (c *Client) showHeader(h http.Header) http.Header {
	out := http.Header{}
	for k, vs := range h {
		for _, v := range vs {
			if slices.Contains(secretHeaders, k) || k == c.login.header() {
				v = hidden
			}
			out.Add(k, pcm.Clean(c.Redact(v), 1<<10))
		}
	}
	return out
}

func (c *Client) showBody(body []byte) string {
	if len(body) > maxShown {
		// Not to cut a secret in two, which would show its first half.
		text := c.Redact(string(body[:min(len(body), maxShown+maxSecret)]))
		return strings.ToValidUTF8(text[:min(len(text), maxShown)], "") + fmt.Sprintf("… (%d bytes in all)", len(body))
	}
	if !utf8.Valid(body) {
		return fmt.Sprintf("(%d bytes that are no text)", len(body))
	}
	return c.Redact(string(body))
}

func (c *Client) trace(x *traced, resp *Response, err error) {
	if x == nil {
		return
	}
	x.Took = time.Since(x.began)
	if resp != nil {
		x.Status, x.ResponseHeader, x.ResponseBody = resp.Status, c.showHeader(resp.Header), c.showBody(resp.Body)
		if x.private {
			x.ResponseBody = hidden
		}
	}
	if err != nil {
		x.Err = err.Error()
	}
	c.cfg.Trace(x.Exchange)
}

// Preview is the request that [Client.Do] would send first. Nothing is sent: the
// log-in is shown as where it goes, not what it is.
func (c *Client) Preview(r Request) (Exchange, error) {
	o, err := prepare(r)
	if err != nil {
		return Exchange{}, c.local(err)
	}
	if err := c.checkTarget(o.url, o.anonymous); err != nil {
		return Exchange{}, c.local(err)
	}
	req := o.build()
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	if h := c.login.header(); h != "" && !o.anonymous {
		req.Header.Set(h, hidden)
	}
	return c.show(req, o, 1), nil
}

package rest

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// answer is what the back end said to a call.
type answer struct {
	status int
	header map[string]any // by name in lower case
	body   any            // JSON as plain values, or a text
}

// in adds what expressions may read of the answer to the variables of its call.
func (a *answer) in(vars map[string]any) map[string]any {
	all := maps.Clone(vars)
	if all == nil {
		all = map[string]any{}
	}
	all["body"], all["status"], all["header"] = a.body, int64(a.status), a.header
	return all
}

// callError is why a call did not succeed.
type callError struct {
	err    error
	absent bool // there is no such thing
	unsent bool // the back end has not acted on it
}

func (e *callError) Error() string { return e.err.Error() }
func (e *callError) Unwrap() error { return e.err }

// isAbsent tells whether the back end said that there is no such thing.
func isAbsent(err error) bool {
	var e *callError
	return errors.As(err, &e) && e.absent
}

// isUnsent tells whether a call that failed has certainly not been acted on.
func isUnsent(err error) bool {
	var e *callError
	return errors.As(err, &e) && e.unsent || client.Unsent(err)
}

// isAway tells whether the back end can't be reached, or asks for patience.
func isAway(err error) bool {
	code := pcm.ErrorCode(err)
	return code == pcm.Unavailable || code == pcm.Busy
}

// call makes a call. If the back end answered at all there is an answer, beside an
// error or not.
func (b *backend) call(ctx context.Context, c *description.Call, vars map[string]any) (*answer, error) {
	req, err := b.request(ctx, &c.Request, vars)
	if err != nil {
		return nil, &callError{err: err, unsent: true}
	}
	return b.send(ctx, c, req, vars)
}

// send sends a request and judges the answer.
func (b *backend) send(ctx context.Context, c *description.Call, req client.Request, vars map[string]any) (*answer, error) {
	req.OK = append(slices.Clone(c.OK), req.OK...)
	resp, err := b.do.Do(ctx, req)
	b.heard(ctx, &req, resp, err)
	if resp == nil {
		return nil, err
	}
	a, perr := b.parse(c, resp)
	said := a.in(vars)
	good := err == nil && (len(c.OK) == 0 || slices.Contains(c.OK, resp.Status))
	missing := slices.Contains(c.Missing, resp.Status) || len(c.Missing) == 0 && resp.Status == 404
	if missing && !slices.Contains(c.OK, resp.Status) {
		return a, &callError{err: cmp.Or(err, error(pcm.Errorf(pcm.NotFound, "%s has no such thing", b.name))), absent: true, unsent: true}
	}
	if c.Absent.Given() && truth(ctx, c.Absent, said) {
		return a, &callError{err: pcm.Errorf(pcm.NotFound, "%s has no such thing: %s", b.name, b.words(ctx, c, said)), absent: true, unsent: true}
	}
	failed := good && c.Failed.Given() && truth(ctx, c.Failed, said)
	switch {
	case good && !failed && perr != nil:
		return nil, perr
	case good && !failed:
		return a, nil
	case err == nil:
		err = pcm.Errorf(pcm.Invalid, "%s answers HTTP %d: %s", b.name, resp.Status, cmp.Or(b.words(ctx, c, said), "no reason is given"))
		return a, &callError{err: err, unsent: failed || resp.Status/100 == 4}
	}
	if why := b.words(ctx, c, said); why != "" {
		err = pcm.Errorf(pcm.ErrorCode(err), "%s answers HTTP %d: %s", b.name, resp.Status, why)
		return a, &callError{err: err, unsent: resp.Status/100 == 4}
	}
	return a, err
}

// truth is that of an expression; one that can't be evaluated is not true.
func truth(ctx context.Context, x description.Expression, vars map[string]any) bool {
	v, err := x.Eval(ctx, vars)
	yes, ok := v.(bool)
	return err == nil && ok && yes
}

// words are the back end's own for why a call failed.
func (b *backend) words(ctx context.Context, c *description.Call, said map[string]any) string {
	if !c.Reason.Given() {
		return ""
	}
	v, err := c.Reason.Eval(ctx, said)
	if err != nil || v == nil {
		return ""
	}
	return b.clean(expr.Text(v), maxReason)
}

const maxReason = 240

// clean makes a text of the back end's fit to be shown: one line, no secrets, no more than n bytes.
func (b *backend) clean(s string, n int) string {
	s = b.secrets.Redact(s[:min(len(s), 8<<10)])
	return pcm.Clean(s, n)
}

// parse reads an answer's body.
func (b *backend) parse(c *description.Call, resp *client.Response) (*answer, error) {
	a := &answer{status: resp.Status, header: map[string]any{}}
	for k, v := range resp.Header {
		if len(v) > 0 {
			a.header[strings.ToLower(k)] = v[0]
		}
	}
	if c.Request.Answer == "text" {
		a.body = string(resp.Body)
		return a, nil
	}
	v, err := resp.JSON()
	if err != nil {
		a.body = string(resp.Body)
		return a, err
	}
	a.body = expr.Plain(v)
	return a, nil
}

// request renders a request.
func (b *backend) request(ctx context.Context, r *description.Request, vars map[string]any) (client.Request, error) {
	var none client.Request
	base, err := b.server(ctx, r.Server)
	if err != nil {
		return none, err
	}
	path, err := renderPath(ctx, r.Path, vars)
	if err != nil {
		return none, pcm.Errorf(pcm.Invalid, "path: %w", err)
	}
	req := client.Request{Method: cmp.Or(r.Method, "GET"), URL: base + path, Query: url.Values{}, Header: map[string][]string{}}
	for _, k := range slices.Sorted(maps.Keys(r.Query)) {
		v, err := r.Query[k].Render(ctx, vars)
		if err != nil {
			return none, pcm.Errorf(pcm.Invalid, "query %s: %w", k, err)
		}
		if v != nil {
			req.Query.Set(k, expr.Text(v))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Headers)) {
		v, err := r.Headers[k].Render(ctx, vars)
		if err != nil {
			return none, pcm.Errorf(pcm.Invalid, "header %s: %w", k, err)
		}
		if v != nil {
			req.Header.Set(k, expr.Text(v))
		}
	}
	if r.Answer == "text" && req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "*/*")
	}
	if r.Body.Given() {
		if req.Body, err = r.Body.Render(ctx, vars); err != nil {
			return none, pcm.Errorf(pcm.Invalid, "body: %w", err)
		}
	}
	if len(r.Form) > 0 {
		form := url.Values{}
		for _, k := range slices.Sorted(maps.Keys(r.Form)) {
			v, err := r.Form[k].Render(ctx, vars)
			if err != nil {
				return none, pcm.Errorf(pcm.Invalid, "form %s: %w", k, err)
			}
			if v != nil {
				form.Set(k, expr.Text(v))
			}
		}
		req.Body = form
	}
	req.Idempotent = slices.Contains([]string{"GET", "HEAD", "PUT", "DELETE"}, req.Method)
	if r.Repeat != nil {
		req.Idempotent = *r.Repeat
	}
	return req, nil
}

// renderPath renders a path: what expressions give is one segment, or one value
// of a query, whatever is in it.
func renderPath(ctx context.Context, t description.Template, vars map[string]any) (string, error) {
	if t.Compiled() == nil {
		return "", nil
	}
	var parts []any
	switch v := t.Compiled().Value().(type) {
	case []any:
		parts = v
	default:
		parts = []any{v}
	}
	var s strings.Builder
	for _, p := range parts {
		if x, ok := p.(*expr.Expr); ok {
			v, err := x.Eval(ctx, vars)
			if err != nil {
				return "", err
			}
			text := expr.Text(v)
			if text == "" || text == "." || text == ".." {
				return "", pcm.Errorf(pcm.Invalid, "%s gives %q, which can't be a part of a path", x.Source(), text)
			}
			s.WriteString(escape(text))
			continue
		}
		s.WriteString(expr.Text(p))
	}
	path := s.String()
	if path != "" && !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "?") {
		path = "/" + path
	}
	return path, nil
}

// escape is strict: nothing that has a meaning in URLs is left.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

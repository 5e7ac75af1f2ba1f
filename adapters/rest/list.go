package rest

import (
	"cmp"
	"context"
	"net/url"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Bounds of a list, however long the back end says that it is.
const (
	maxPages = 1000
	maxItems = 50_000
	maxPage  = 10_000
)

// list calls each for the items of a list, page by page, until it says that it has
// seen enough. If there is an error, items may be missing.
func (b *backend) list(ctx context.Context, l *description.List, vars map[string]any, each func(item any) (enough bool)) error {
	first, err := b.request(ctx, &l.Request, vars)
	if err != nil {
		return err
	}
	p := l.Paging
	if p == nil {
		_, _, err := b.page(ctx, l, first, vars, each)
		return err
	}
	size, number, seen, marker := cmp.Or(p.Limit, 100), p.First, 0, ""
	for n := 0; ; n++ {
		if n >= maxPages || seen >= maxItems {
			return pcm.Errorf(pcm.TooLarge, "the list of %s doesn't end within %d pages or %d items", b.name, maxPages, maxItems)
		}
		req := first
		if p.Kind != "link" && p.Kind != "url" || n == 0 {
			var value any
			switch p.Kind {
			case "offset":
				value = int64(seen)
			case "page":
				value = int64(number + n)
			case "marker":
				value = marker
			}
			if req, err = paged(first, p, value, size); err != nil {
				return err
			}
		} else if req, err = b.followed(ctx, l, first, marker); err != nil {
			return err
		}
		a, items, err := b.page(ctx, l, req, vars, each)
		if err != nil {
			return err
		}
		if a == nil { // seen enough
			return nil
		}
		seen += len(items)
		said := a.in(vars)
		total := int64(-1)
		if p.Total.Given() {
			if v, err := p.Total.Eval(ctx, said); err == nil {
				if t, ok := number64(v); ok {
					total = t
				}
			}
		}
		last := marker
		switch p.Kind {
		case "offset", "page":
			if len(items) == 0 || total >= 0 && int64(seen) >= total || total < 0 && len(items) < size {
				return nil
			}
			continue
		case "link":
			marker = nextLink(expr.Text(a.header["link"]))
		case "url":
			marker = b.mark(ctx, p, said)
		default:
			if len(items) == 0 {
				return nil
			}
			said["item"] = items[len(items)-1]
			marker = b.mark(ctx, p, said)
		}
		if marker == "" || len(items) == 0 {
			return nil
		}
		if marker == last {
			return pcm.Errorf(pcm.Unavailable, "the list of %s goes on with the page that it came from", b.name)
		}
	}
}

func (b *backend) mark(ctx context.Context, p *description.Paging, said map[string]any) string {
	v, err := p.Marker.Eval(ctx, said)
	if err != nil {
		return "" // a last page may lack what tells of the next
	}
	return expr.Text(v)
}

// page calls for one page. The answer is nil if each has seen enough.
func (b *backend) page(ctx context.Context, l *description.List, req client.Request, vars map[string]any, each func(any) bool) (*answer, []any, error) {
	a, err := b.send(ctx, &l.Call, req, vars)
	if err != nil {
		return nil, nil, err
	}
	v, err := l.Items.Eval(ctx, a.in(vars))
	if err != nil {
		return nil, nil, pcm.Errorf(pcm.Unavailable, "the list of %s is not as described: %w", b.name, err)
	}
	items, ok := v.([]any)
	if !ok && v != nil {
		return nil, nil, pcm.Errorf(pcm.Unavailable, "the list of %s is not as described: its items are %s", b.name, expr.Kind(v))
	}
	if len(items) > maxPage {
		return nil, nil, pcm.Errorf(pcm.TooLarge, "a page of the list of %s has %d items, over the bound of %d", b.name, len(items), maxPage)
	}
	for _, item := range items {
		if each(item) {
			return nil, nil, nil
		}
	}
	return a, items, nil
}

// paged adds the parameters of a page to a request.
func paged(r client.Request, p *description.Paging, value any, size int) (client.Request, error) {
	put := map[string]any{}
	if p.Param != "" && value != nil && value != "" {
		put[p.Param] = value
	}
	if p.Size != "" {
		put[p.Size] = int64(size)
	}
	if p.In == "body" {
		body, ok := r.Body.(map[string]any)
		if !ok && r.Body != nil {
			return r, pcm.Errorf(pcm.Invalid, "paging is in the body, which is no map")
		}
		all := map[string]any{}
		for k, v := range body {
			all[k] = v
		}
		for k, v := range put {
			all[k] = v
		}
		r.Body = all
		return r, nil
	}
	q := url.Values{}
	for k, v := range r.Query {
		q[k] = v
	}
	for k, v := range put {
		q.Set(k, expr.Text(v))
	}
	r.Query = q
	return r, nil
}

// followed is the request of the page at an address that the back end gave. The
// client lets no log-in go elsewhere.
func (b *backend) followed(ctx context.Context, l *description.List, first client.Request, to string) (client.Request, error) {
	base, err := b.server(ctx, l.Request.Server)
	if err != nil {
		return first, err
	}
	at, err := url.Parse(base)
	if err != nil {
		return first, pcm.Errorf(pcm.Invalid, "the address of %s can't be read", b.name)
	}
	u, err := at.Parse(to)
	if err != nil || u.Scheme != at.Scheme || u.Host != at.Host {
		return first, pcm.Errorf(pcm.Refused, "the list of %s goes on at another address than its own", b.name)
	}
	first.URL, first.Query = u.String(), nil
	return first, nil
}

// nextLink finds the next page in a Link header (RFC 8288).
func nextLink(header string) string {
	for _, part := range strings.Split(header, ",") {
		target, params, ok := strings.Cut(strings.TrimSpace(part), ">")
		if !ok || !strings.HasPrefix(target, "<") {
			continue
		}
		for _, p := range strings.Split(params, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
			if strings.EqualFold(k, "rel") && strings.EqualFold(strings.Trim(v, `"`), "next") {
				return target[1:]
			}
		}
	}
	return ""
}

// number64 is a value as a whole number.
func number64(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case uint64:
		return int64(v), v < 1<<62
	case float64:
		return int64(v), v > -1e15 && v < 1e15
	}
	return 0, false
}

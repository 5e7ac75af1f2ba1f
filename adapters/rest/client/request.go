package client

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"

	"github.com/jointcloud/pcm"
)

// Bounds of what is sent.
const (
	maxRequestBody = 8 << 20
	maxURL         = 16 << 10
)

// Request is one call.
type Request struct {
	Method string // "": GET
	URL    string // absolute
	Query  url.Values
	Header http.Header
	Body   any // nil, []byte and string as they are, url.Values as a form, all else as JSON

	// Idempotent says that the call can be made twice without harm, so that it may
	// be tried again when it is not known whether the server has acted on it. GET
	// and HEAD always are.
	Idempotent bool

	// Anonymous calls carry no log-in: those of URLs that the back end hands out.
	Anonymous bool

	OK []int // statuses that are no error, beside 200 to 299
}

// Response is an answer, read in full.
type Response struct {
	Status int
	Header http.Header
	Body   []byte // unpacked; within [Config.MaxBody]
	URL    string // that answered in the end, without its query
}

// JSON decodes the body into maps, slices, strings, booleans, nil and
// [json.Number]; nil for an empty one. The error has code Unavailable: a server
// that answers something else is not the interface that was expected.
func (r *Response) JSON() (any, error) {
	if len(bytes.TrimSpace(r.Body)) == 0 {
		return nil, nil
	}
	v, err := decodeJSON(r.Body)
	if err == nil {
		return v, nil
	}
	if t := r.Header.Get("Content-Type"); t != "" && !strings.Contains(t, "json") {
		return nil, pcm.Errorf(pcm.Unavailable, "the answer of %s is %.60q, not JSON: is the address the interface's?", r.URL, pcm.Clean(t, 60))
	}
	return nil, pcm.Errorf(pcm.Unavailable, "the answer of %s can't be read: %w", r.URL, err)
}

// outgoing is a request that was checked, with its body in bytes.
type outgoing struct {
	method     string
	url        *url.URL
	header     http.Header
	body       []byte
	idempotent bool
	anonymous  bool
	ok         []int

	// Of a transfer: what is sent instead of body, and how many bytes went either way.
	stream io.ReaderAt
	size   int64
	moved  *atomic.Int64
}

// ours are headers that the client alone sets.
var ours = []string{"Host", "Content-Length", "Transfer-Encoding", "Connection", "Accept-Encoding", "Expect", "Upgrade", "Te", "Trailer"}

func prepare(r Request) (*outgoing, error) {
	o := &outgoing{method: r.Method, header: http.Header{}, anonymous: r.Anonymous, ok: r.OK}
	if o.method == "" {
		o.method = http.MethodGet
	}
	if !slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}, o.method) {
		return nil, pcm.Errorf(pcm.Invalid, "%.20q is not a method: GET, HEAD, POST, PUT, PATCH or DELETE", o.method)
	}
	o.idempotent = r.Idempotent || o.method == http.MethodGet || o.method == http.MethodHead
	var err error
	if o.url, err = parseURL(r.URL); err != nil {
		return nil, err
	}
	query, err := url.ParseQuery(o.url.RawQuery)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "%s: what stands behind the question mark is no query", bare(o.url))
	}
	for k, vs := range r.Query {
		query[k] = append(query[k], vs...)
	}
	// Handed-out URLs are signed as they are written.
	if len(r.Query) > 0 || !r.Anonymous {
		o.url.RawQuery = canonicalQuery(query)
	}
	if !r.Anonymous {
		o.url.RawPath = canonicalPath(o.url)
	}
	for k, vs := range r.Header {
		k = textproto.CanonicalMIMEHeaderKey(k)
		if !httpguts.ValidHeaderFieldName(k) || slices.Contains(ours, k) {
			return nil, pcm.Errorf(pcm.Invalid, "header %.64q can't be set", k)
		}
		for _, v := range vs {
			if !httpguts.ValidHeaderFieldValue(v) || len(v) > 8<<10 {
				return nil, pcm.Errorf(pcm.Invalid, "the value of header %s has a control character, or is over 8 KiB", k)
			}
			o.header.Add(k, v)
		}
	}
	var contentType string
	if o.body, contentType, err = encodeBody(r.Body); err != nil {
		return nil, err
	}
	if contentType != "" && o.header.Get("Content-Type") == "" {
		o.header.Set("Content-Type", contentType)
	}
	if o.header.Get("Accept") == "" {
		o.header.Set("Accept", "application/json, */*;q=0.5")
	}
	if len(o.url.RequestURI()) > maxURL {
		return nil, pcm.Errorf(pcm.TooLarge, "%s: the URL is over the bound of %d bytes", bare(o.url), maxURL)
	}
	return o, nil
}

func encodeBody(body any) (data []byte, contentType string, err error) {
	switch b := body.(type) {
	case nil:
	case []byte:
		data = b
	case string:
		data = []byte(b)
	case url.Values:
		data, contentType = []byte(b.Encode()), "application/x-www-form-urlencoded"
	default:
		var buf bytes.Buffer
		e := json.NewEncoder(&buf)
		e.SetEscapeHTML(false)
		if err := e.Encode(b); err != nil {
			return nil, "", pcm.Errorf(pcm.Invalid, "the body can't be made JSON: %w", err)
		}
		data, contentType = bytes.TrimSuffix(buf.Bytes(), []byte("\n")), "application/json"
	}
	if len(data) > maxRequestBody {
		return nil, "", pcm.Errorf(pcm.TooLarge, "a body of %d bytes is over the bound of %s", len(data), pcm.Bytes(maxRequestBody))
	}
	return data, contentType, nil
}

// parseURL reads an absolute URL of HTTP. Errors don't repeat its query, nor what
// stands before the host: either may be a secret.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		// Nothing of it, as it is not known which part is which.
		return nil, pcm.Errorf(pcm.Invalid, "an address is not of the form https://HOST[:PORT]/PATH")
	case u.User != nil:
		return nil, pcm.Errorf(pcm.Invalid, "the address of %s has a user or password in it: that belongs under secrets", u.Host)
	case u.Opaque != "":
		return nil, pcm.Errorf(pcm.Invalid, "the address of %s has no path", u.Host)
	}
	u.Fragment, u.RawFragment = "", ""
	if u.Path == "" {
		u.Path = "/"
	}
	return u, nil
}

// bare is a URL for messages: without its query, which may hold secrets.
func bare(u *url.URL) string {
	return pcm.Clean((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String(), 200)
}

// origin is what browsers call so: scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")) + ":" + port
}

// build makes the request of one hop.
func (o *outgoing) build() *http.Request {
	u := *o.url
	req := &http.Request{
		Method: o.method, URL: &u, Host: u.Host, Header: o.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	req.Host = hostOf(req)
	if o.stream != nil && o.size > 0 {
		// One reader for each try: the last one's may still be in use.
		content := func() (io.ReadCloser, error) {
			return io.NopCloser(&moving{io.NewSectionReader(o.stream, 0, o.size), o.moved}), nil
		}
		req.ContentLength, req.GetBody = o.size, content
		req.Body, _ = content()
		if o.size > 1<<20 {
			req.Header.Set("Expect", "100-continue")
		}
	} else if len(o.body) > 0 {
		req.ContentLength = int64(len(o.body))
		req.Body = io.NopCloser(bytes.NewReader(o.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(o.body)), nil }
	} else if o.method != http.MethodGet && o.method != http.MethodHead {
		req.Body = http.NoBody // says Content-Length: 0
	}
	return req
}

package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
)

// Bounds of transfers.
const (
	maxUpload   = 5 << 30  // bytes in one request, as S3 has it
	minProgress = 32 << 10 // bytes that a transfer must move within each [Config.Timeout]
	maxTransfer = 24 * time.Hour
)

// Transfer is where a back end wants data to be put, or where it is to be had: a
// URL that it handed out. No log-in goes there.
type Transfer struct {
	URL    string
	Method string      // "": PUT to upload, GET to download
	Header http.Header // that the back end demands
}

// Upload sends size bytes to where the back end wants them.
func (c *Client) Upload(ctx context.Context, t Transfer, r io.ReaderAt, size int64) (*Response, error) {
	o, err := prepare(Request{Method: orDefault(t.Method, http.MethodPut), URL: t.URL, Header: t.Header, Anonymous: true, Idempotent: t.Method != http.MethodPost})
	if err != nil {
		return nil, c.local(err)
	}
	return c.send(ctx, o, r, size)
}

// send makes a call whose body is a stream.
func (c *Client) send(ctx context.Context, o *outgoing, r io.ReaderAt, size int64) (*Response, error) {
	if size < 0 || size > maxUpload {
		return nil, c.local(pcm.Errorf(pcm.TooLarge, "%s: %s are over the bound of %s for one object: divide it", bare(o.url), pcm.Bytes(size), pcm.Bytes(maxUpload)))
	}
	o.stream, o.size, o.moved = r, size, new(atomic.Int64)
	return c.call(ctx, o, nil)
}

// Download writes what is at a URL that the back end handed out to w, and returns
// how many bytes there were. If they are over the limit the error has code
// TooLarge; part of them may have been written by then, as with any other error.
// A transfer that breaks off goes on where it was, if the server can do that.
func (c *Client) Download(ctx context.Context, t Transfer, w io.Writer, limit pcm.Bytes) (int64, error) {
	o, err := prepare(Request{Method: orDefault(t.Method, http.MethodGet), URL: t.URL, Header: t.Header, Anonymous: true})
	if err != nil {
		return 0, c.local(err)
	}
	if o.header.Get("Accept") != "" && t.Header.Get("Accept") == "" {
		o.header.Set("Accept", "*/*")
	}
	d := &download{c: c, o: o, w: w, limit: int64(limit)}
	_, err = c.receive(ctx, d)
	return d.written, err
}

// receive makes a call whose answer is a stream.
func (c *Client) receive(ctx context.Context, d *download) (*Response, error) {
	d.o.moved = new(atomic.Int64)
	d.limit = max(0, min(d.limit, 1<<60))
	return c.call(ctx, d.o, d.take)
}

// download is the state of one over all its tries.
type download struct {
	c       *Client
	o       *outgoing
	w       io.Writer
	limit   int64
	written int64
	first   http.Header // of the first piece
}

func (d *download) fail(code pcm.Code, final bool, format string, args ...any) *failure {
	return &failure{code: code, final: final, text: fmt.Sprintf(format, args...)}
}

// take writes the body of a good answer.
func (d *download) take(resp *http.Response) *failure {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return d.fail(pcm.Unavailable, true, "its answer is packed as %.20q, which was not asked for", enc)
	}
	switch {
	case resp.StatusCode == http.StatusOK && d.written == 0:
		d.first = resp.Header
	case resp.StatusCode == http.StatusPartialContent && d.written > 0:
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(d.written, 10)+"-") {
			return d.fail(pcm.Unavailable, true, "it goes on at %.60q instead of at byte %d", resp.Header.Get("Content-Range"), d.written)
		}
		if tag := resp.Header.Get("ETag"); tag != d.first.Get("ETag") {
			return d.fail(pcm.Unavailable, true, "it was changed while it was read")
		}
	case d.written > 0:
		return d.fail(pcm.Unavailable, true, "the transfer broke off at byte %d, and the server can't go on from there", d.written)
	default:
		return d.fail(pcm.Unavailable, true, "it answers with status %d", resp.StatusCode)
	}
	if n := resp.ContentLength; n > d.limit-d.written {
		return d.fail(pcm.TooLarge, true, "it has %d bytes, over the bound of %s", d.written+n, pcm.Bytes(d.limit))
	}
	out := &sink{w: d.w}
	n, err := io.Copy(out, &moving{io.LimitReader(resp.Body, d.limit-d.written+1), d.o.moved})
	if d.written += n; d.written > d.limit {
		return d.fail(pcm.TooLarge, true, "it has over %s", pcm.Bytes(d.limit))
	}
	switch {
	case out.err != nil:
		return d.fail(pcm.Internal, true, "can't write what came: %v", out.err)
	case err != nil:
		// What has no strong tag may be something else the next time.
		tag := d.first.Get("ETag")
		if d.written > 0 {
			d.o.header.Set("Range", fmt.Sprintf("bytes=%d-", d.written))
			d.o.header.Set("If-Match", tag)
		}
		return d.fail(pcm.Unavailable, d.written > 0 && !strings.HasPrefix(tag, `"`), "the transfer broke off at byte %d: %s", d.written, pcm.Clean(err.Error(), maxWords))
	}
	return nil
}

// sink remembers whether it was the writer that failed.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

// moving counts the bytes that pass.
type moving struct {
	io.Reader
	moved *atomic.Int64
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.moved.Add(int64(n))
	return n, err
}

// watchdog ends a transfer that doesn't get on: a peer that sends a byte now and
// then would hold it for ever.
func watchdog(ctx context.Context, window time.Duration, moved *atomic.Int64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, maxTransfer)
	go func() {
		ticks := time.NewTicker(window)
		defer ticks.Stop()
		for last := moved.Load(); ; {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
			now := moved.Load()
			if now-last < minProgress {
				cancel()
				return
			}
			last = now
		}
	}()
	return ctx, cancel
}

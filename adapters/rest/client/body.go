package client

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/jointcloud/pcm"
)

// taker reads the body of a good answer as it comes.
type taker func(*http.Response) *failure

// readBody reads an answer within a bound that holds for what comes and for what
// it unpacks to.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	raw := &bounded{r: resp.Body, left: limit, limit: limit}
	var r io.Reader = raw
	switch enc := strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding"))); {
	case resp.StatusCode == http.StatusNoContent, resp.StatusCode == http.StatusNotModified, resp.Request != nil && resp.Request.Method == http.MethodHead:
		return nil, nil
	case enc == "" || enc == "identity":
	case enc == "gzip" || enc == "x-gzip":
		z, err := gzip.NewReader(raw)
		if errors.Is(err, io.EOF) {
			return nil, nil // says so of an empty body
		}
		if err != nil {
			return nil, unpackError(err)
		}
		r = &bounded{r: z, left: limit, limit: limit}
	default:
		return nil, pcm.Errorf(pcm.Unavailable, "its answer is packed as %.20q, which was not asked for", enc)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return nil, unpackError(err)
	}
	return body, nil
}

func unpackError(err error) error {
	if errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) {
		return pcm.Errorf(pcm.Unavailable, "its answer says that it is packed by gzip, and is not")
	}
	return err
}

// bounded refuses to read over a limit.
type bounded struct {
	r           io.Reader
	left, limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// What ends exactly at the limit is within it.
		var one [1]byte
		n, err := b.r.Read(one[:])
		if n > 0 {
			return 0, pcm.Errorf(pcm.Unavailable, "its answer is over the bound of %s", pcm.Bytes(b.limit))
		}
		return 0, err
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

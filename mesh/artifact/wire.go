package artifact

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Protocol is the one by which artifacts travel. On a stream the client sends
// requests, each a length (4 bytes, big-endian) and a CBOR-encoded request; it may
// send the next before the answer to the last one is read. The server answers
// each blob that was asked for, in order, with a status byte, a length (4 bytes,
// big-endian) and that many bytes: the blob, or a message for a person.
const Protocol protocol.ID = "/pcm/artifact/1.0.0"

// Bounds of the protocol.
const (
	maxRequest     = 128 << 10        // bytes of an encoded request
	maxWanted      = 1024             // blobs asked for in one request
	maxNote        = 512              // bytes of a message in an answer
	requestWait    = time.Minute      // a server waits this long for the next request
	blobWait       = 2 * time.Minute  // each side gives one blob this long to pass
	slotWait       = 30 * time.Second // a request waits this long for its turn
	wantBytes      = 4 << 20          // a client asks for about this much at once
	wantBlobs      = 256              // … and at most so many chunks
	clientStreams  = 16               // by which one Service fetches at the same time
	perPeerStreams = 8                // that one peer may have open here
	perPeerSlots   = 4                // requests of one peer that are served at the same time
	serverSlots    = 16               // requests that are served at the same time
)

// request asks for blobs of some artifacts.
type request struct {
	Items []item `cbor:"1,keyasint"`
}

// item asks for blobs of one artifact: its manifest, or chunks and lists that are reachable from it.
type item struct {
	Root  []byte `cbor:"1,keyasint"`
	Tree  bool   `cbor:"2,keyasint,omitempty"`
	Blobs []byte `cbor:"3,keyasint,omitempty"` // sums, one after another
}

func (r request) wanted() (n int) {
	for _, it := range r.Items {
		n += len(it.Blobs) / sumSize
		if it.Tree {
			n++
		}
	}
	return n
}

func decodeRequest(data []byte) (request, error) {
	var r request
	if err := pcm.Unmarshal(data, &r); err != nil {
		return r, err
	}
	for _, it := range r.Items {
		if len(it.Root) != sumSize || len(it.Blobs)%sumSize != 0 {
			return r, pcm.Errorf(pcm.Invalid, "request for blobs is malformed")
		}
	}
	if n := r.wanted(); n == 0 || n > maxWanted || len(r.Items) > maxWanted {
		return r, pcm.Errorf(pcm.Invalid, "request for %d blobs is out of range: 1 to %d", n, maxWanted)
	}
	return r, nil
}

// status is how a server answers for one blob.
type status byte

const (
	statusData status = iota + 1
	statusMissing
	statusForbidden
	statusBusy
	statusInvalid
	statusFailed
)

var statusCodes = map[status]pcm.Code{
	statusMissing: pcm.NotFound, statusForbidden: pcm.Forbidden, statusBusy: pcm.Busy,
	statusInvalid: pcm.Invalid, statusFailed: pcm.Unavailable,
}

func readRequest(r io.Reader) (request, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return request{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxRequest {
		return request{}, pcm.Errorf(pcm.TooLarge, "request of %d bytes is over the bound of %d", n, maxRequest)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return request{}, err
	}
	return decodeRequest(data)
}

func writeAnswer(w io.Writer, st status, data []byte) error {
	var head [5]byte
	head[0] = byte(st)
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// conn is a client's end of a stream.
type conn struct {
	st   network.Stream
	r    *bufio.Reader
	stop func() bool // ends the watch over the context
	done func()      // gives the stream's slot back
}

func newConn(ctx context.Context, st network.Stream, done func()) *conn {
	stop := context.AfterFunc(ctx, func() { st.Reset() })
	return &conn{st: st, r: bufio.NewReaderSize(st, 64<<10), stop: stop, done: done}
}

func (c *conn) close(err error) {
	c.stop()
	if err != nil {
		c.st.Reset()
	} else {
		c.st.Close()
	}
	c.done()
}

func (c *conn) send(req request) error {
	data := pcm.MustMarshal(req)
	msg := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data)))
	c.st.SetWriteDeadline(time.Now().Add(blobWait))
	_, err := c.st.Write(append(msg, data...))
	return err
}

// lie is an answer that can't be that of an honest peer.
type lie struct{ why string }

func (l *lie) Error() string { return l.why }

// receive reads the answer for one blob, of at most bound bytes, into buf, or into
// memory of its own if buf is too small. An error of code NotFound, Forbidden, Busy, Invalid or Unavailable is the
// server's answer, and the stream goes on; a *lie or any other ends it.
func (c *conn) receive(buf []byte, bound int) ([]byte, error) {
	c.st.SetReadDeadline(time.Now().Add(blobWait))
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, cutShort(err)
	}
	st, n := status(head[0]), int64(binary.BigEndian.Uint32(head[1:]))
	if st == statusData {
		if n > int64(bound) {
			return nil, &lie{"it sent more than was asked for"}
		}
		if n > int64(len(buf)) {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(c.r, buf[:n]); err != nil {
			return nil, cutShort(err)
		}
		return buf[:n], nil
	}
	code, ok := statusCodes[st]
	if !ok || n > maxNote {
		return nil, &lie{"it doesn't speak this protocol"}
	}
	note := make([]byte, n)
	if _, err := io.ReadFull(c.r, note); err != nil {
		return nil, cutShort(err)
	}
	return nil, pcm.Errorf(code, "%s", printable(note))
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// printable makes another peer's message safe for a terminal.
func printable(b []byte) string {
	out := make([]rune, 0, len(b))
	for _, r := range string(b) {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

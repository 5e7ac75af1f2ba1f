package consensus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
)

// protocolBase is the path of every protocol of one cell: a peer of another
// cell can't get in, whatever it says.
func protocolBase(cell pcm.CellID) string { return "/pcm/cell/1.0.0/" + string(cell) }

func (c *Cell) protocol(name string) protocol.ID { return protocolOf(c.cfg.Cell, name) }

func protocolOf(cell pcm.CellID, name string) protocol.ID {
	return protocol.ID(protocolBase(cell) + "/" + name)
}

// The protocols of a cell below its base path.
const (
	protoRaft    = "raft"    // hashicorp/raft's own messages
	protoPropose = "propose" // requests: commands for the leader
	protoAdmin   = "admin"   // requests: status, sync, membership
	protoRecords = "records" // requests: history
	protoEvents  = "events"  // pushed: what was committed
	protoNotice  = "notice"  // requests: whether the cell was recovered, and who is up of those it left behind
	protoQuery   = "query"   // requests: who leads; questions that the ledger answers. Also of peers outside the cell
)

// maxFrame bounds a frame: a message and what wraps it.
const maxFrame = pcm.MaxMessage

// request asks for one thing over a stream that carries many at a time.
type request struct {
	ID     uint64 `cbor:"1,keyasint"`
	Method string `cbor:"2,keyasint"`
	Body   []byte `cbor:"3,keyasint,omitempty"`
}

type response struct {
	ID    uint64     `cbor:"1,keyasint"`
	Body  []byte     `cbor:"2,keyasint,omitempty"`
	Err   *pcm.Error `cbor:"3,keyasint,omitempty"`
	Retry bool       `cbor:"4,keyasint,omitempty"` // another peer, or this one later, can answer
}

// writeFrame writes a value as its length (4 bytes, big-endian) and its CBOR.
func writeFrame(w *bufio.Writer, v any) error {
	data, err := pcm.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxFrame {
		return pcm.Errorf(pcm.TooLarge, "message of %d bytes is over the bound of %d", len(data), maxFrame)
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(data)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// frameWriter writes frames to a stream; those that are to be written together leave together.
type frameWriter struct {
	stream network.Stream
	buf    *bufio.Writer // nil: nothing waits to be sent
	until  time.Time     // the stream's write deadline
}

// writeBuffers are for streams that have something to send: most have nothing, most of the time.
var writeBuffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 64<<10) }}

// readBuffer is for streams that wait for what comes. More is read past it.
const readBuffer = 4 << 10

func newFrameWriter(s network.Stream) *frameWriter { return &frameWriter{stream: s} }

// write writes a frame and, if no more are to follow, sends what is buffered. The answers
// to an entry's commands come one after the other: who is about to add the next one
// gets a chance to, as each message is a TLS record and a system call at both ends.
func (w *frameWriter) write(v any, more func() bool) error {
	if now := time.Now(); w.until.Sub(now) < writeTimeout-time.Second {
		w.until = now.Add(writeTimeout)
		w.stream.SetWriteDeadline(w.until)
	}
	if w.buf == nil {
		w.buf = writeBuffers.Get().(*bufio.Writer)
		w.buf.Reset(w.stream)
	}
	if err := writeFrame(w.buf, v); err != nil {
		return err
	}
	if more() {
		return nil
	}
	if runtime.Gosched(); more() {
		return nil
	}
	err := w.buf.Flush()
	w.buf.Reset(nil)
	writeBuffers.Put(w.buf)
	w.buf = nil
	return err
}

// readFrame reads what writeFrame wrote. Memory grows only as bytes arrive, so
// that a length alone costs nothing.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > maxFrame {
		return pcm.Errorf(pcm.TooLarge, "message of %d bytes is over the bound of %d", n, maxFrame)
	}
	if n <= 64<<10 {
		data := make([]byte, n)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		return pcm.Unmarshal(data, v)
	}
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, n); err != nil {
		return err
	}
	return pcm.Unmarshal(buf.Bytes(), v)
}

// retryable marks an error after which the same request may succeed at another
// peer or a moment later. Its cause tells why.
type retryable struct{ err error }

func (e *retryable) Error() string { return e.err.Error() }
func (e *retryable) Unwrap() error { return e.err }

func retryf(format string, args ...any) error {
	return &retryable{pcm.Errorf(pcm.Unavailable, format, args...)}
}

func isRetryable(err error) bool {
	var r *retryable
	return errors.As(err, &r)
}

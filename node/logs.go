package node

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// protoLogs streams the output of a task from the peer that runs it: one frame
// with the request, then one status byte, then the bytes (or the error).
const protoLogs protocol.ID = "/pcm/logs/1.0.0"

type logRequest struct {
	Trade  pcm.TradeID `cbor:"1,keyasint"`
	Index  int         `cbor:"2,keyasint"`
	Stream string      `cbor:"3,keyasint"`
	Offset int64       `cbor:"4,keyasint"`
	Follow bool        `cbor:"5,keyasint"`
}

const maxLogRequest = 1024

// Logs streams one stream of one task, from wherever it is: the accepted
// output, or live from the peer that runs it. With follow it waits for the task
// to begin, and goes on with the next attempt when one is lost.
func (n *Node) Logs(ctx context.Context, id pcm.JobID, step, index int, stream string, follow bool) (io.ReadCloser, error) {
	if stream != string(adapters.Stdout) && stream != string(adapters.Stderr) {
		return nil, pcm.Errorf(pcm.Invalid, "a task has the streams stdout and stderr, not %q", stream)
	}
	n.fresh(ctx)
	t, err := n.placeOf(id, step, index)
	if err != nil {
		return nil, err
	}
	if !follow && !t.decided && t.trade == "" {
		return nil, pcm.Errorf(pcm.Conflict, "task %d/%d of %s has not begun: it is %s (see 'pcm job explain %s')", step, index, pcm.Short(id), t.state, pcm.Short(id))
	}
	if t.decided {
		return n.storedLog(ctx, t, stream, 0)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(n.copyLog(ctx, w, id, step, index, stream, follow)) }()
	return r, nil
}

// taskPlace is where a task is.
type taskPlace struct {
	state   pcm.TaskState
	decided bool
	attempt int
	trade   pcm.TradeID
	seller  pcm.PeerID
	driver  pcm.PeerID
	job     pcm.JobID
	output  pcm.Digest
	reason  string
}

// copyLog copies a live log until the task is decided.
func (n *Node) copyLog(ctx context.Context, w io.Writer, id pcm.JobID, step, index int, stream string, follow bool) error {
	attempt := 0
	var offset int64
	for {
		news := n.pulse.next()
		n.fresh(ctx)
		t, err := n.placeOf(id, step, index)
		if err != nil {
			return err
		}
		if t.attempt != attempt { // another attempt begins anew
			attempt, offset = t.attempt, 0
		}
		switch {
		case t.decided:
			r, err := n.storedLog(ctx, t, stream, offset)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(w, r)
			return err
		case t.trade != "":
			r, err := n.liveLog(ctx, t, index, stream, offset, follow)
			if err == nil {
				var k int64
				k, err = io.Copy(w, r)
				offset += k
				r.Close()
			}
			if !follow {
				return err
			}
		}
		if err := n.await(ctx, news); err != nil {
			return err
		}
	}
}

// await waits until something is committed, at most a moment; an error if ctx or
// the node ended.
func (n *Node) await(ctx context.Context, news <-chan struct{}) error {
	select {
	case <-news:
		return nil
	case <-time.After(time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.run.Done():
		return pcm.Errorf(pcm.Unavailable, "this peer is going down")
	}
}

// storedLog reads a stream of an accepted result.
func (n *Node) storedLog(ctx context.Context, t taskPlace, stream string, offset int64) (io.ReadCloser, error) {
	if t.output == "" {
		return io.NopCloser(noBytes{}), nil
	}
	if err := n.bringOutput(ctx, t); err != nil {
		return nil, err
	}
	r, err := n.store.ReadFile(ctx, t.output, stream, offset)
	if pcm.ErrorCode(err) == pcm.NotFound {
		return io.NopCloser(noBytes{}), nil // the stream was empty
	}
	return r, err
}

type noBytes struct{}

func (noBytes) Read([]byte) (int, error) { return 0, io.EOF }

// bringOutput gets an accepted output here, from whoever has it.
func (n *Node) bringOutput(ctx context.Context, t taskPlace) error {
	if n.store.Has(t.output) {
		return nil
	}
	if err := n.pin(jobOwner(t.job), t.output); err != nil {
		return err
	}
	var from []pcm.PeerID
	for _, p := range []pcm.PeerID{t.driver, t.seller} {
		if p != "" && p != n.self {
			from = append(from, p)
		}
	}
	return n.files.Fetch(ctx, t.output, from...)
}

// liveLog opens a stream at the peer that runs the task.
func (n *Node) liveLog(ctx context.Context, t taskPlace, index int, stream string, offset int64, follow bool) (io.ReadCloser, error) {
	req := logRequest{Trade: t.trade, Index: index, Stream: stream, Offset: offset, Follow: follow}
	if t.seller == n.self {
		return n.seller.openLog(ctx, req)
	}
	s, err := n.mesh.Stream(ctx, t.seller, protoLogs)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	if err := writeRequest(s, pcm.MustMarshal(req)); err != nil {
		stop()
		s.Reset()
		return nil, pcm.Errorf(pcm.Unavailable, "can't ask peer %s for the log: %w", pcm.Short(t.seller), err)
	}
	var status [1]byte
	if _, err := io.ReadFull(s, status[:]); err != nil {
		stop()
		s.Reset()
		return nil, pcm.Errorf(pcm.Unavailable, "peer %s did not answer for the log: %w", pcm.Short(t.seller), err)
	}
	if status[0] != 0 {
		defer stop()
		defer s.Close()
		data, _ := io.ReadAll(io.LimitReader(s, maxLogRequest*4))
		var e pcm.Error
		if err := pcm.Unmarshal(data, &e); err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "peer %s did not give the log", pcm.Short(t.seller))
		}
		return nil, &e
	}
	return &logStream{s, stop}, nil
}

type logStream struct {
	network.Stream
	stop func() bool
}

func (l *logStream) Close() error {
	l.stop()
	return l.Stream.Reset() // the rest, if any, is not wanted
}

func writeRequest(w io.Writer, req []byte) error {
	frame := append([]byte{byte(len(req) >> 8), byte(len(req))}, req...)
	_, err := w.Write(frame)
	return err
}

func readRequest(r io.Reader) (logRequest, error) {
	var req logRequest
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return req, err
	}
	size := int(head[0])<<8 | int(head[1])
	if size > maxLogRequest {
		return req, pcm.Errorf(pcm.TooLarge, "a request for a log has at most %d bytes", maxLogRequest)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return req, err
	}
	return req, pcm.Unmarshal(data, &req)
}

// serveLogs answers other peers.
func (n *Node) serveLogs(ctx context.Context, from pcm.Passport, s network.Stream) {
	defer s.Close()
	s.SetReadDeadline(time.Now().Add(10 * time.Second))
	req, err := readRequest(s)
	if err != nil {
		s.Reset()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // the other side hangs up when it has seen enough
		s.SetReadDeadline(time.Time{})
		io.Copy(io.Discard, io.LimitReader(s, 1))
		cancel()
	}()
	r, err := n.logFor(ctx, from, req)
	if err != nil {
		s.SetWriteDeadline(time.Now().Add(10 * time.Second))
		s.Write(append([]byte{1}, pcm.MustMarshal(pcm.AsError(err))...))
		return
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	if _, err := s.Write([]byte{0}); err != nil {
		s.Reset()
		return
	}
	if _, err := io.Copy(patientWriter{s}, r); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		s.Reset()
	}
}

// patientWriter gives a reader a minute for each write, so that one that
// doesn't read can't hold a stream for ever.
type patientWriter struct{ s network.Stream }

func (w patientWriter) Write(p []byte) (int, error) {
	w.s.SetWriteDeadline(time.Now().Add(time.Minute))
	return w.s.Write(p)
}

// logFor opens a log for another peer, if it may see it.
func (n *Node) logFor(ctx context.Context, from pcm.Passport, req logRequest) (io.ReadCloser, error) {
	n.seller.mu.Lock()
	x := n.seller.trades[req.Trade]
	n.seller.mu.Unlock()
	if x == nil {
		return nil, pcm.Errorf(pcm.NotFound, "no task of %s runs here", req.Trade)
	}
	if from.Account != x.terms.Buyer && from.Peer != x.terms.Driver && !n.specs.concerned(from, x.terms.Job) {
		return nil, pcm.Errorf(pcm.Forbidden, "the log of %s is not for peer %s", req.Trade, pcm.Short(from.Peer))
	}
	if err := n.seller.mayGive(req.Trade, from.Peer); err != nil {
		return nil, err
	}
	return n.seller.openLog(ctx, req)
}

// openLog reads a stream of an attempt that runs here.
func (s *seller) openLog(ctx context.Context, req logRequest) (io.ReadCloser, error) {
	s.mu.Lock()
	x := s.trades[req.Trade]
	started := x != nil && (x.running[req.Index] != nil || x.ended[req.Index])
	s.mu.Unlock()
	if x == nil {
		return nil, pcm.Errorf(pcm.NotFound, "no task of %s runs here", req.Trade)
	}
	if !started {
		return nil, pcm.Errorf(pcm.NotFound, "task %d of %s has not started", req.Index, req.Trade)
	}
	k := adapters.Key{Trade: req.Trade, Index: req.Index, Attempt: x.terms.Attempt}
	return s.adapters[x.terms.Adapter].Logs(ctx, k, adapters.StreamName(req.Stream), req.Offset, req.Follow)
}

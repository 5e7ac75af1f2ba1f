package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// A call is one stream: a request frame (varint of the milliseconds that the
// caller waits, then the payload) and a response frame (one status byte, then
// payload or error).
const (
	statusOK    = 0
	statusError = 1

	maxCallTime = 5 * time.Minute // for a handler, whatever the caller asks
	headerRoom  = 2*binary.MaxVarintLen64 + 1
)

// Limits bound what one protocol takes. The zero value means the defaults.
type Limits struct {
	Request    int // bytes; default and ceiling pcm.MaxMessage
	Concurrent int // streams of one peer at once; default 64
}

const defaultConcurrent = 64

func (l Limits) orDefault() Limits {
	if l.Request <= 0 || l.Request > pcm.MaxMessage {
		l.Request = pcm.MaxMessage
	}
	if l.Concurrent <= 0 {
		l.Concurrent = defaultConcurrent
	}
	return l
}

// CallHandler answers one request of an admitted peer. ctx ends when the caller's
// patience or the mesh does. An error reaches the caller as a *pcm.Error with its
// code and message; any other error as code Internal.
type CallHandler func(ctx context.Context, from pcm.Passport, req []byte) ([]byte, error)

// StreamHandler serves one stream of an admitted peer and closes it. ctx ends with the mesh.
type StreamHandler func(ctx context.Context, from pcm.Passport, s network.Stream)

// Handle serves a stream protocol to admitted peers, at most 64 streams of each
// peer at once; further ones are reset.
func (m *Mesh) Handle(proto protocol.ID, h func(ctx context.Context, from pcm.Passport, s network.Stream)) {
	m.HandleLimited(proto, Limits{}, h)
}

// HandleLimited is Handle with a bound of its own on the streams of each peer.
func (m *Mesh) HandleLimited(proto protocol.ID, limits Limits, h StreamHandler) {
	slots := newSlots(limits.orDefault().Concurrent)
	m.host.SetStreamHandler(proto, func(s network.Stream) {
		p := s.Conn().RemotePeer()
		passport, err := m.admitted(p)
		if err != nil {
			s.ResetWithError(network.StreamGated)
			return
		}
		if !slots.take(p) {
			s.ResetWithError(network.StreamRateLimited)
			return
		}
		defer slots.give(p)
		h(m.ctx, passport, s)
	})
}

// HandleCall serves a request protocol to admitted peers. A peer over its
// bound on concurrent calls gets code Busy, an oversized request TooLarge.
func (m *Mesh) HandleCall(proto protocol.ID, limits Limits, h CallHandler) {
	limits = limits.orDefault()
	slots := newSlots(limits.Concurrent)
	m.host.SetStreamHandler(proto, func(s network.Stream) {
		defer s.Close()
		p := s.Conn().RemotePeer()
		passport, err := m.admitted(p)
		if err != nil {
			s.ResetWithError(network.StreamGated)
			return
		}
		if !slots.take(p) {
			s.SetWriteDeadline(time.Now().Add(helloTimeout))
			m.respond(s, nil, pcm.Errorf(pcm.Busy, "%s: peer %s already serves %d calls of peer %s: try again in a moment", proto, short(m.self), limits.Concurrent, short(p)))
			return
		}
		defer slots.give(p)
		m.serveCall(s, passport, limits, h)
	})
}

func (m *Mesh) serveCall(s network.Stream, from pcm.Passport, limits Limits, h CallHandler) {
	s.SetReadDeadline(time.Now().Add(time.Minute))
	patience, err := binary.ReadUvarint(byteReader{s})
	if err != nil {
		s.Reset()
		return
	}
	req, err := readFrame(s, limits.Request)
	if err != nil {
		if pcm.ErrorCode(err) != pcm.TooLarge {
			s.Reset()
			return
		}
		s.SetWriteDeadline(time.Now().Add(helloTimeout))
		m.respond(s, nil, err)
		// An honest sender still pushes and would not hear the answer before it is through.
		s.SetReadDeadline(time.Now().Add(helloTimeout))
		if n, _ := io.CopyN(io.Discard, s, pcm.MaxMessage); n == pcm.MaxMessage {
			s.ResetWithError(network.StreamProtocolViolation)
		}
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, callTime(patience))
	defer cancel()
	resp, err := h(ctx, from, req)
	if err == nil && len(resp) > pcm.MaxMessage {
		err = pcm.Errorf(pcm.Internal, "answer of %d bytes is over the bound of %d", len(resp), pcm.MaxMessage)
	}
	s.SetWriteDeadline(time.Now().Add(time.Minute))
	m.respond(s, resp, err)
}

func callTime(ms uint64) time.Duration {
	if ms == 0 || ms > uint64(maxCallTime/time.Millisecond) {
		return maxCallTime
	}
	return time.Duration(ms) * time.Millisecond
}

func (m *Mesh) respond(s network.Stream, resp []byte, err error) {
	status := byte(statusOK)
	if err != nil {
		status, resp = statusError, pcm.MustMarshal(asError(err))
	}
	b := make([]byte, 0, len(resp)+headerRoom)
	b = append(b, status)
	if _, err := s.Write(appendFrame(b, resp)); err != nil {
		s.Reset()
		return
	}
	s.CloseWrite()
}

// Call sends one request to a peer and returns its answer, dialling if need be.
// Request and answer are at most pcm.MaxMessage bytes. Errors: what the other
// side's handler returned, or Unavailable (can't be reached, did not answer
// within ctx or 5 minutes), Busy, TooLarge, Unauthorized (not a member, here or
// there), NotFound (does not serve proto). After Unavailable the request may or
// may not have been carried out.
func (m *Mesh) Call(ctx context.Context, to pcm.PeerID, proto protocol.ID, req []byte) ([]byte, error) {
	if len(req) > pcm.MaxMessage {
		return nil, pcm.Errorf(pcm.TooLarge, "%s: request of %d bytes is over the bound of %d", proto, len(req), pcm.MaxMessage)
	}
	ctx, cancel := context.WithTimeout(ctx, maxCallTime)
	defer cancel()
	s, err := m.Stream(ctx, to, proto)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()

	deadline, _ := ctx.Deadline()
	b := make([]byte, 0, len(req)+headerRoom)
	b = binary.AppendUvarint(b, uint64(max(time.Until(deadline).Milliseconds(), 1)))
	b = appendFrame(b, req)
	_, writeErr := s.Write(b)
	if writeErr == nil {
		writeErr = s.CloseWrite()
	}
	// Even when the request did not go through, the other side may have said why.
	resp, err := readResponse(s)
	var said answer
	if errors.As(err, &said) {
		return nil, said.err
	}
	if err == nil {
		return resp, nil
	}
	s.Reset()
	if cause := ctx.Err(); cause != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "%s: peer %s did not answer in time: %w", proto, pcm.Short(to), cause)
	}
	if isUnsupported(err) || writeErr != nil && isUnsupported(writeErr) {
		return nil, pcm.Errorf(pcm.NotFound, "peer %s does not serve %s", pcm.Short(to), proto)
	}
	return nil, frameError(s.Conn().RemotePeer(), string(proto), err)
}

// answer marks an error that the other side's handler returned.
type answer struct{ err *pcm.Error }

func (a answer) Error() string { return a.err.Error() }

func readResponse(s network.Stream) ([]byte, error) {
	status, err := byteReader{s}.ReadByte()
	if err != nil {
		return nil, err
	}
	body, err := readFrame(s, pcm.MaxMessage)
	if err != nil {
		return nil, err
	}
	switch status {
	case statusOK:
		return body, nil
	case statusError:
		var e pcm.Error
		if err := pcm.Unmarshal(body, &e); err != nil {
			return nil, err
		}
		return nil, answer{cleanError(&e)}
	}
	return nil, pcm.Errorf(pcm.Invalid, "answer has the unknown status %d", status)
}

// Stream opens a stream of a protocol to a member, dialling and waiting for its
// hello if need be, bounded by ctx. The caller closes or resets it. The
// protocol is negotiated with the first bytes: a peer that does not serve it
// shows at the first read. Errors have code Unavailable, Unauthorized, Refused or Invalid.
func (m *Mesh) Stream(ctx context.Context, to pcm.PeerID, proto protocol.ID) (network.Stream, error) {
	p, err := peer.Decode(string(to))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not a peer ID: %w", to, err)
	}
	if p == m.self {
		return nil, pcm.Errorf(pcm.Invalid, "peer %s can't open a stream to itself", pcm.Short(to))
	}
	s, err := m.host.NewStream(ctx, p, proto)
	if err == nil {
		return s, nil
	}
	if e := (*pcm.Error)(nil); errors.As(err, &e) {
		return nil, e
	}
	if isUnsupported(err) {
		return nil, pcm.Errorf(pcm.NotFound, "peer %s does not serve %s", pcm.Short(to), proto)
	}
	return nil, pcm.Errorf(pcm.Unavailable, "can't open %s to peer %s: %w", proto, pcm.Short(to), err)
}

// slots bounds concurrency for each peer.
type slots struct {
	each int
	mu   sync.Mutex
	used map[peer.ID]int
}

func newSlots(each int) *slots { return &slots{each: each, used: map[peer.ID]int{}} }

func (l *slots) take(p peer.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used[p] >= l.each {
		return false
	}
	l.used[p]++
	return true
}

func (l *slots) give(p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used[p]--; l.used[p] <= 0 {
		delete(l.used, p)
	}
}

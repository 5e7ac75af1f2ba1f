package consensus

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
)

// streamLayer is the raft.StreamLayer over libp2p: an address is a peer ID, and
// libp2p finds the way and proves that the other end is who it is.
type streamLayer struct {
	host     host.Host
	self     pcm.PeerID
	protocol protocol.ID
	allow    func(pcm.PeerID) bool // who may open a stream to us

	ctx      context.Context
	cancel   context.CancelFunc
	dialling context.Context // ends before ctx
	accept   chan net.Conn

	mu   sync.Mutex
	open map[*streamConn]struct{} // accepted ones, to be cut by Close
}

// maxAccepting bounds the accepted streams that Raft hasn't fetched yet, and
// maxAccepted those that are open.
const (
	maxAccepting = 16
	maxAccepted  = 256
)

// dialling ends the calls that wait for their peer: before Raft is stopped, since
// that waits for its calls.
func newStreamLayer(dialling context.Context, h host.Host, self pcm.PeerID, proto protocol.ID, allow func(pcm.PeerID) bool) *streamLayer {
	ctx, cancel := context.WithCancel(context.Background())
	return &streamLayer{
		host: h, self: self, protocol: proto, allow: allow, ctx: ctx, cancel: cancel, dialling: dialling,
		accept: make(chan net.Conn, maxAccepting), open: map[*streamConn]struct{}{},
	}
}

// listen begins to take streams. Raft's transport is up by then.
func (l *streamLayer) listen() {
	l.host.SetStreamHandler(l.protocol, func(s network.Stream) {
		from := pcm.PeerID(s.Conn().RemotePeer().String())
		if !l.allow(from) {
			s.Reset()
			return
		}
		conn := l.wrap(s)
		l.mu.Lock()
		full := len(l.open) >= maxAccepted || l.ctx.Err() != nil
		if !full {
			l.open[conn] = struct{}{}
		}
		l.mu.Unlock()
		if full {
			s.Reset()
			return
		}
		select {
		case l.accept <- conn:
		default:
			conn.Close()
		}
	})
}

func (l *streamLayer) wrap(s network.Stream) *streamConn {
	return &streamConn{
		Stream: s, layer: l,
		local:  peerAddr(l.self),
		remote: peerAddr(s.Conn().RemotePeer().String()),
	}
}

// Dial opens a stream to the peer that the address names; to itself, a pipe.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if string(address) == string(l.self) {
		here, there := net.Pipe()
		select {
		case l.accept <- there:
			return here, nil
		default:
			return nil, pcm.Errorf(pcm.Busy, "too many streams are being accepted")
		}
	}
	id, err := peer.Decode(string(address))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "server address %q is not a peer ID", address)
	}
	ctx, cancel := context.WithTimeout(l.dialling, timeout)
	defer cancel()
	for {
		s, err := l.host.NewStream(ctx, id, l.protocol)
		if err == nil {
			return l.wrap(s), nil
		}
		// Raft doubles its wait with each failed call, up to 10 s: a voter that
		// comes back would stay behind for as long. So a call waits here, and
		// goes on as soon as the peer is there again.
		if !l.awaitConnection(ctx, id) {
			return nil, &dialError{err}
		}
	}
}

// dialError says that there is no stream, in contrast to one that broke.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// reconnectPoll is how often a waiting call looks whether its peer is back.
const reconnectPoll = 50 * time.Millisecond

// awaitConnection waits until there is a connection to the peer; false if ctx ends before.
func (l *streamLayer) awaitConnection(ctx context.Context, id peer.ID) bool {
	poll := time.NewTicker(reconnectPoll)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if l.host.Network().Connectedness(id) == network.Connected {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (l *streamLayer) Close() error {
	l.host.RemoveStreamHandler(l.protocol)
	l.cancel()
	l.cut(func(pcm.PeerID) bool { return true })
	return nil
}

// cut closes accepted streams from some peers.
func (l *streamLayer) cut(from func(pcm.PeerID) bool) {
	l.mu.Lock()
	var gone []*streamConn
	for c := range l.open {
		if from(pcm.PeerID(c.remote)) {
			gone = append(gone, c)
		}
	}
	l.mu.Unlock()
	for _, c := range gone {
		c.Close()
	}
}

func (l *streamLayer) Addr() net.Addr { return peerAddr(l.self) }

// peerAddr is a peer ID as a net.Addr.
type peerAddr string

func (a peerAddr) Network() string { return "libp2p" }
func (a peerAddr) String() string  { return string(a) }

// streamConn is a libp2p stream as a net.Conn.
type streamConn struct {
	network.Stream
	layer         *streamLayer
	local, remote peerAddr
}

func (c *streamConn) LocalAddr() net.Addr  { return c.local }
func (c *streamConn) RemoteAddr() net.Addr { return c.remote }

// Close frees the stream at both ends at once. Raft closes a connection only
// when nothing that matters is under way on it, so nothing is lost; a graceful
// close would leave it half open until the other end closes too.
func (c *streamConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.open, c)
	c.layer.mu.Unlock()
	return c.Stream.Reset()
}

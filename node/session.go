package node

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// protoSession is work with a running task at the peer that runs it: the frames
// of [api.Session], but that the request names the attempt.
const protoSession protocol.ID = "/pcm/session/1.0.0"

// attemptRequest is how a session between peers begins.
type attemptRequest struct {
	Trade   pcm.TradeID        `cbor:"1,keyasint"`
	Index   int                `cbor:"2,keyasint"`
	Request api.SessionRequest `cbor:"3,keyasint"`
}

// Bounds of the sessions that a seller serves.
const (
	maxSessions     = 512 // in all
	maxSessionsPeer = 128 // of one peer
	maxSessionsTask = 64  // with one attempt
	sessionCheck    = 5 * time.Second
)

// Session implements api.Node: it takes the client's request, and passes the
// session on to the peer that runs the task, or serves it if that is this one.
func (n *Node) Session(ctx context.Context, id pcm.JobID, step, index int, conn io.ReadWriteCloser) error {
	s := api.NewSession(conn)
	defer s.Close()
	var r api.SessionRequest
	err := s.ReadRequest(&r)
	if err == nil {
		err = r.Check()
	}
	var t taskPlace
	if err == nil {
		n.fresh(ctx)
		if t, err = n.placeOf(id, step, index); err == nil && t.trade == "" {
			err = pcm.Errorf(pcm.Conflict, "task %d/%d of %s does not run: it is %s%s", step, index, pcm.Short(id), t.state, prefixed(": ", t.reason))
		}
	}
	if err != nil {
		s.Fail(err)
		return err
	}
	req := attemptRequest{Trade: t.trade, Index: index, Request: r}
	if t.seller == n.self {
		return n.serveAttempt(ctx, s, req, asker{account: n.account, peer: n.self, own: true})
	}
	return n.passOn(ctx, s, t.seller, req)
}

// passOn carries frames between a client here and the peer that runs the task.
func (n *Node) passOn(ctx context.Context, near *api.Session, seller pcm.PeerID, req attemptRequest) error {
	begin, cancel := context.WithTimeout(ctx, 20*time.Second)
	stream, err := n.mesh.Stream(begin, seller, protoSession)
	cancel()
	if err != nil {
		near.Fail(err)
		return err
	}
	far := api.NewSession(resetOnClose{stream})
	defer far.Close()
	defer context.AfterFunc(ctx, func() { far.Close() })()
	if err := far.Write(api.FrameRequest, pcm.MustMarshal(req)); err != nil {
		near.Fail(err)
		return err
	}
	go func() {
		defer far.Close()
		for {
			kind, data, err := near.Read()
			if err != nil || kind != api.FrameStdin && kind != api.FrameResize || far.Write(kind, data) != nil {
				return
			}
		}
	}()
	for {
		kind, data, err := far.Read()
		if err != nil {
			err = pcm.Errorf(pcm.Unavailable, "peer %s: %w", pcm.Short(seller), err)
			near.Fail(err)
			return err
		}
		switch kind {
		case api.FrameReady, api.FrameStdout, api.FrameStderr:
			if err := near.Write(kind, data); err != nil {
				return err
			}
		case api.FrameExit, api.FrameError:
			return near.Write(kind, data)
		default:
			err := pcm.Errorf(pcm.Invalid, "peer %s sent a frame of kind %d", pcm.Short(seller), kind)
			near.Fail(err)
			return err
		}
	}
}

// resetOnClose is a stream whose end is abrupt: what is to be read was read.
type resetOnClose struct{ network.Stream }

func (r resetOnClose) Close() error { return r.Stream.Reset() }

// closeGently is a stream whose last frame still goes out.
type closeGently struct{ network.Stream }

func (c closeGently) Close() error {
	c.Stream.SetDeadline(time.Now()) // lets go of who waits to read or write: on QUIC, closing alone does not
	return c.Stream.Close()
}

// serveSession serves other peers.
func (n *Node) serveSession(ctx context.Context, from pcm.Passport, stream network.Stream) {
	s := api.NewSession(closeGently{stream})
	defer s.Close()
	var req attemptRequest
	if err := s.ReadRequest(&req); err != nil {
		s.Fail(err)
		return
	}
	if err := n.serveAttempt(ctx, s, req, asker{account: from.Account, peer: from.Peer}); err != nil {
		n.log.Debug("a session with a task ended", "trade", req.Trade, "task", req.Index, "peer", pcm.Short(from.Peer), "error", err)
	}
}

// asker is who wants to work with a task.
type asker struct {
	account pcm.AccountID
	peer    pcm.PeerID
	own     bool // through the local API of the peer that runs the task
}

// serveAttempt carries out a session with an attempt that runs here.
func (n *Node) serveAttempt(ctx context.Context, s *api.Session, req attemptRequest, who asker) error {
	h, err := n.seller.mayWork(req, who)
	if err != nil {
		s.Fail(err)
		return err
	}
	defer n.seller.leave(req)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.run, cancel)()
	go h.guard(ctx, cancel)
	begun := time.Now()
	code, err := api.ServeSession(ctx, s, req.Request, h)
	if req.Request.Op != api.OpLook {
		n.log.Info("worked with a task", "op", req.Request.Op, "trade", req.Trade, "task", req.Index,
			"account", who.account, "peer", pcm.Short(who.peer), "exit", code, "took", time.Since(begun).Round(time.Millisecond), "error", err)
		n.seller.noteSession(ctx, h.x, req, who, err)
	}
	return err
}

// sessions counts those that a seller serves, by attempt.
type sessions struct {
	mu  sync.Mutex
	all int
	by  map[adapters.Key]int
}

// mayWork tells whether a session with an attempt may begin, and begins it: leave ends it.
func (s *seller) mayWork(req attemptRequest, who asker) (*attemptWork, error) {
	if err := req.Request.Check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	x := s.trades[req.Trade]
	var r *run
	placed := false
	if x != nil {
		r = x.running[req.Index]
		placed = r != nil && r.placed && !x.ended[req.Index]
	}
	s.mu.Unlock()
	if x == nil {
		return nil, pcm.Errorf(pcm.NotFound, "no task of %s runs here", req.Trade)
	}
	if err := s.authorised(x, who); err != nil {
		return nil, err
	}
	if !who.own {
		if err := s.mayGive(req.Trade, who.peer); err != nil {
			return nil, err
		}
	}
	if !placed && req.Request.Op != api.OpLook {
		return nil, pcm.Errorf(pcm.Conflict, "task %d of %s does not run now: it has not started, or has ended", req.Index, req.Trade)
	}
	if r == nil {
		return nil, pcm.Errorf(pcm.Conflict, "task %d of %s has not started, or has ended", req.Index, req.Trade)
	}
	if err := s.can(x, req.Request.Op, who); err != nil {
		return nil, err
	}
	k := x.key(req.Index)
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if s.sessions.all >= maxSessions || s.sessions.by[k] >= maxSessionsTask {
		return nil, pcm.Errorf(pcm.Busy, "%d sessions are open here, %d of them with this task, and no more are served: close some", s.sessions.all, s.sessions.by[k])
	}
	s.sessions.all++
	s.sessions.by[k]++
	return &attemptWork{s: s, x: x, r: r, k: k}, nil
}

// leave notes that a session is over.
func (s *seller) leave(req attemptRequest) {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	s.sessions.all--
	for k := range s.sessions.by {
		if k.Trade == req.Trade && k.Index == req.Index {
			if s.sessions.by[k]--; s.sessions.by[k] <= 0 {
				delete(s.sessions.by, k)
			}
		}
	}
}

// authorised tells whether somebody may work with a trade's tasks: who buys them,
// who drives the job for the buyer, and who owns the machine.
func (s *seller) authorised(x *execution, who asker) error {
	if who.own || who.account == x.terms.Buyer {
		return nil
	}
	driver := x.terms.Driver
	s.n.cell.View(func() {
		if j, ok := s.n.state.Job(x.terms.Job); ok && !x.terms.Abroad() {
			driver = j.Driver
		}
	})
	if who.peer == driver {
		return nil
	}
	return pcm.Errorf(pcm.Forbidden, "the tasks of %s are for account %s to work with, not for peer %s", x.terms.Trade(), pcm.Short(x.terms.Buyer), pcm.Short(who.peer))
}

// attemptWork does what sessions ask for with one attempt.
type attemptWork struct {
	s *seller
	x *execution
	r *run
	k adapters.Key
}

var _ api.SessionHandler = (*attemptWork)(nil)

func (w *attemptWork) adapter() adapters.Adapter { return w.s.adapters[w.x.terms.Adapter] }

// guard ends a session with its attempt.
func (w *attemptWork) guard(ctx context.Context, end context.CancelFunc) {
	for pause(ctx, sessionCheck) {
		w.s.mu.Lock()
		runs := w.x.running[w.k.Index] == w.r && !w.x.ended[w.k.Index]
		w.s.mu.Unlock()
		if !runs {
			pause(ctx, sessionCheck) // what it said last is still on its way
			end()
			return
		}
	}
}

// Exec implements api.SessionHandler, as do the others.
func (w *attemptWork) Exec(ctx context.Context, x api.ExecRequest) (int, error) {
	role, ok := w.adapter().(adapters.Execer)
	if !ok {
		return 0, w.s.lacks(w.x, pcm.FeatureExec)
	}
	return role.Exec(ctx, w.k, adapters.Exec{
		Command: x.Command, TTY: x.TTY, Rows: x.Rows, Cols: x.Cols,
		Stdin: x.Stdin, Stdout: x.Stdout, Stderr: x.Stderr, Resize: x.Resize,
	})
}

// CopyOut writes a file or folder as a tar stream.
func (w *attemptWork) CopyOut(ctx context.Context, path string, to io.Writer) error {
	role, ok := w.adapter().(adapters.Copier)
	if !ok {
		return w.s.lacks(w.x, pcm.FeatureCopy)
	}
	return role.CopyOut(ctx, w.k, path, to)
}

// CopyIn unpacks a tar stream.
func (w *attemptWork) CopyIn(ctx context.Context, folder string, r io.Reader) error {
	role, ok := w.adapter().(adapters.Copier)
	if !ok {
		return w.s.lacks(w.x, pcm.FeatureCopy)
	}
	return role.CopyIn(ctx, w.k, folder, r)
}

// service is what a trade's step says of itself as a service, nil if it is none;
// and whether that is known yet.
func (s *seller) service(x *execution) (svc *pcm.Service, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !x.prepared || x.terms.Step >= len(x.held.spec.Steps) {
		return nil, false
	}
	return x.held.spec.Steps[x.terms.Step].Service, true
}

// dialTime bounds the making of a connection to a service.
const dialTime = 10 * time.Second

// Dial connects to the attempt's service.
func (w *attemptWork) Dial(ctx context.Context, port int) (net.Conn, error) {
	role, ok := w.adapter().(adapters.Dialer)
	if !ok {
		return nil, w.s.lacks(w.x, pcm.FeatureService)
	}
	own, known := w.s.service(w.x)
	switch {
	case !known:
		return nil, pcm.Errorf(pcm.Unavailable, "this peer has not got the job's spec again since it started: try again in a moment")
	case own == nil:
		return nil, pcm.Errorf(pcm.Refused, "the task is not a service: give its step 'service: {port: …}'")
	case port == 0:
		port = own.Port
	case port != own.Port:
		return nil, pcm.Errorf(pcm.Refused, "the service's port is %d, not %d: only that one can be reached", own.Port, port)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return role.Dial(ctx, w.k, port)
}

// Suspend halts the attempt, or lets it go on.
func (w *attemptWork) Suspend(ctx context.Context, suspend bool) error {
	role, ok := w.adapter().(adapters.Suspender)
	if !ok {
		return w.s.lacks(w.x, pcm.FeatureSuspend)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if suspend {
		return role.Suspend(ctx, w.k)
	}
	return role.Resume(ctx, w.k)
}

// Look tells how the attempt is, as its back end told last.
func (w *attemptWork) Look(context.Context) (api.Live, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	st := w.r.status
	v := api.Live{
		ID: w.k.String(), State: string(st.State), Native: st.Native, Reason: st.Reason, Since: st.Started.UTC(),
	}
	if st.State == "" {
		v.State = string(adapters.Prepared)
	}
	if w.r.vitals != nil {
		v.Health, v.Check = string(w.r.vitals.state), w.r.vitals.said
	}
	return v, nil
}

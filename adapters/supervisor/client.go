package supervisor

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// ClientConfig is what a Client needs.
type ClientConfig struct {
	Dir  string   // the supervisor's folder, as in Config
	Argv []string // command that serves Dir; empty: a supervisor is never started
	Env  []string // of that command, beside PATH and HOME
	// Version names the build and the settings in Argv. A supervisor of another
	// version is replaced as soon as nothing runs under it.
	Version      string
	Logger       *slog.Logger
	StartTimeout time.Duration // for a supervisor to answer once started; default 10 s
}

// callTimeout bounds a call whose context has no deadline.
const callTimeout = 30 * time.Second

// Client reaches the supervisor of one folder, starting it when none answers.
// It connects with the first call and again after a loss. It is safe for
// concurrent use.
type Client struct {
	cfg  ClientConfig
	log  *slog.Logger
	gate chan struct{} // capacity 1: held while connecting

	mu     sync.Mutex
	link   *link // nil: not connected
	closed bool
}

// NewClient makes a client. It does not connect yet.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.StartTimeout <= 0 {
		cfg.StartTimeout = 10 * time.Second
	}
	if abs, err := filepath.Abs(cfg.Dir); err == nil {
		cfg.Dir = abs
	}
	return &Client{cfg: cfg, log: cfg.Logger, gate: make(chan struct{}, 1)}
}

// Close cuts the connection. The supervisor and its tasks go on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.link != nil {
		c.link.fail(errClosed)
	}
	return nil
}

var errClosed = pcm.Errorf(pcm.Unavailable, "the supervisor's client is closed")

// Facts asks what the runner does on this machine.
func (c *Client) Facts(ctx context.Context, runner string) (Facts, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	l, err := c.connect(ctx)
	if err != nil {
		return Facts{}, err
	}
	f, ok := l.welcome.Facts[runner]
	if !ok {
		return Facts{}, pcm.Errorf(pcm.Unavailable, "the running supervisor (process %d) has no runner %q", l.welcome.PID, runner)
	}
	return f, nil
}

// PID is the process ID of the supervisor.
func (c *Client) PID(ctx context.Context) (int, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	l, err := c.connect(ctx)
	if err != nil {
		return 0, err
	}
	return l.welcome.PID, nil
}

// Attempts is the client's view of one runner's attempts: what an adapter does,
// but for its name and pools.
func (c *Client) Attempts(runner string) *Attempts { return &Attempts{c, runner} }

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// call sends one request and waits for its answer. All requests are idempotent:
// one that is lost with its connection is sent once more.
func (c *Client) call(ctx context.Context, m *message) (*message, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	for try := 1; ; try++ {
		l, err := c.connect(ctx)
		if err != nil {
			return nil, err
		}
		reply, err := l.call(ctx, m)
		if err == nil || l.alive() || ctx.Err() != nil || try == 2 {
			return reply, err
		}
	}
}

// connect gives the live connection, or makes one.
func (c *Client) connect(ctx context.Context) (*link, error) {
	if l, err := c.current(); l != nil || err != nil {
		return l, err
	}
	select {
	case c.gate <- struct{}{}:
		defer func() { <-c.gate }()
	case <-ctx.Done():
		return nil, timeout(ctx)
	}
	if l, err := c.current(); l != nil || err != nil {
		return l, err
	}
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if l.welcome.Version != c.cfg.Version && len(c.cfg.Argv) > 0 {
		if l, err = c.replace(ctx, l); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.fail(errClosed)
		return nil, errClosed
	}
	c.link = l
	return l, nil
}

func (c *Client) current() (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.link != nil && c.link.alive() {
		return c.link, nil
	}
	c.link = nil
	return nil, nil
}

// replace ends a supervisor of another version if it has nothing to do.
func (c *Client) replace(ctx context.Context, l *link) (*link, error) {
	log := c.log.With("pid", l.welcome.PID, "its_version", l.welcome.Version, "our_version", c.cfg.Version)
	if _, err := l.call(ctx, &message{Op: opRetire}); err != nil {
		if pcm.ErrorCode(err) != pcm.Busy {
			return nil, err
		}
		log.Info("supervisor of another version still runs tasks: going on with it", "running", l.welcome.Running)
		return l, nil
	}
	log.Info("replacing the supervisor of another version")
	select {
	case <-l.done: // it closes the connection as its last act before it ends
	case <-ctx.Done():
		return nil, timeout(ctx)
	}
	return c.dial(ctx)
}

// link is one connection to a supervisor.
type link struct {
	conn    net.Conn
	welcome *welcome
	out     chan *message
	done    chan struct{} // closed when lost
	once    sync.Once

	mu      sync.Mutex
	err     error
	last    uint64
	pending map[uint64]chan *message
	watch   map[*watcher]bool
}

// watcher receives the statuses of one runner's attempts.
type watcher struct {
	runner string
	C      chan adapters.Status
}

// watchBuffer is how far a watcher may fall behind before it is cut off.
const watchBuffer = 8192

// greet takes a fresh connection into use.
func greet(ctx context.Context, conn net.Conn, version string) (*link, error) {
	l := &link{conn: conn, out: make(chan *message, maxPending), done: make(chan struct{}), pending: map[uint64]chan *message{}, watch: map[*watcher]bool{}}
	go l.write()
	go l.read()
	reply, err := l.call(ctx, &message{Op: opHello, Hello: &hello{Min: minProtocol, Max: maxProtocol, Version: version}})
	if err == nil && (reply.Welcome == nil || reply.Welcome.Protocol < minProtocol || reply.Welcome.Protocol > maxProtocol) {
		err = pcm.Errorf(pcm.Unavailable, "the supervisor's answer to hello can't be understood")
	}
	if err != nil {
		l.fail(err)
		return nil, err
	}
	l.welcome = reply.Welcome
	return l, nil
}

func (l *link) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// fail ends the connection: waiting calls return err, watchers are closed.
func (l *link) fail(err error) {
	l.once.Do(func() {
		l.conn.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = err
		close(l.done)
		for w := range l.watch {
			close(w.C)
		}
		l.watch = nil
	})
}

func (l *link) call(ctx context.Context, m *message) (*message, error) {
	if ctx.Err() != nil { // nobody waits for it: it must not be sent after what ended ctx
		return nil, timeout(ctx)
	}
	reply := make(chan *message, 1)
	l.mu.Lock()
	l.last++
	m.ID = l.last
	l.pending[m.ID] = reply
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pending, m.ID)
		l.mu.Unlock()
	}()
	select {
	case l.out <- m:
	case <-l.done:
		return nil, l.lost()
	case <-ctx.Done():
		return nil, timeout(ctx)
	}
	select {
	case r := <-reply:
		if r.Err != nil {
			return nil, r.Err
		}
		return r, nil
	case <-l.done:
		select { // the answer may have come with the end
		case r := <-reply:
			if r.Err != nil {
				return nil, r.Err
			}
			return r, nil
		default:
		}
		return nil, l.lost()
	case <-ctx.Done():
		return nil, timeout(ctx)
	}
}

func (l *link) lost() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return pcm.Errorf(pcm.Unavailable, "the supervisor was lost: %w", l.err)
}

func timeout(ctx context.Context) error {
	return pcm.Errorf(pcm.Unavailable, "the supervisor did not answer in time: %w", context.Cause(ctx))
}

func (l *link) write() {
	w := bufio.NewWriterSize(l.conn, 32<<10)
	for {
		var m *message
		select {
		case m = <-l.out:
		case <-l.done:
			return
		}
		for m != nil {
			if err := writeMessage(w, m); pcm.ErrorCode(err) == pcm.TooLarge {
				l.deliver(&message{ID: m.ID, Op: opReply, Err: wireError(err)})
			} else if err != nil {
				l.fail(err)
				return
			}
			select {
			case m = <-l.out:
			default:
				m = nil
			}
		}
		if err := w.Flush(); err != nil {
			l.fail(err)
			return
		}
	}
}

func (l *link) read() {
	r := bufio.NewReaderSize(l.conn, 32<<10)
	for {
		m, err := readMessage(r)
		if err != nil {
			l.fail(err)
			return
		}
		switch m.Op {
		case opReply:
			l.deliver(m)
		case opEvent:
			if err := l.publish(m.Statuses); err != nil {
				l.fail(err)
				return
			}
		}
	}
}

func (l *link) deliver(m *message) {
	l.mu.Lock()
	c := l.pending[m.ID]
	delete(l.pending, m.ID)
	l.mu.Unlock()
	if c != nil {
		c <- m // has room for its one answer
	}
}

func (l *link) publish(events []status) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		st, err := e.open()
		if err != nil {
			return err
		}
		for w := range l.watch {
			if w.runner != e.Runner {
				continue
			}
			select {
			case w.C <- st:
			default: // too slow: it must look again
				delete(l.watch, w)
				close(w.C)
			}
		}
	}
	return nil
}

// subscribe adds a watcher until ctx ends or the connection is lost.
func (l *link) subscribe(ctx context.Context, runner string) (<-chan adapters.Status, error) {
	w := &watcher{runner, make(chan adapters.Status, watchBuffer)}
	l.mu.Lock()
	if l.watch == nil {
		l.mu.Unlock()
		return nil, l.lost()
	}
	l.watch[w] = true
	l.mu.Unlock()
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.watch[w] {
			delete(l.watch, w)
			close(w.C)
		}
	})
	return w.C, nil
}

// isGone tells whether an error of a dial means that nobody serves.
func isGone(err error) bool {
	return errors.Is(err, errNoSocket) || errors.Is(err, errNobody)
}

package supervisor

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"golang.org/x/sys/unix"
)

const (
	maxPeers     = 16 // daemons connected at once: one, and those that come and go
	maxParallel  = 64 // requests of one peer in work
	writeTimeout = 30 * time.Second
)

// peer is a connected daemon. Everything that it sends is checked: the socket
// is private to the user, but the daemon may be of another version.
type peer struct {
	s    *Server
	conn net.Conn
	out  chan *message // closed never; see quit
	quit chan struct{}
	once sync.Once
}

func (s *Server) accept(l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("can't accept", "err", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors: let some be closed
			continue
		}
		if err := sameUser(conn.(*net.UnixConn)); err != nil {
			s.log.Warn("refused a connection", "err", err)
			conn.Close()
			continue
		}
		p := &peer{s: s, conn: conn, out: make(chan *message, maxPending), quit: make(chan struct{})}
		s.mu.Lock()
		full := len(s.peers) >= maxPeers
		if !full {
			s.peers[p] = true
			s.touch()
		}
		s.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		wg.Go(p.write)
		wg.Go(p.read)
	}
}

// sameUser refuses other users, should the folder's permissions ever let them in.
func sameUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if int(cred.Uid) != os.Getuid() && cred.Uid != 0 {
		return pcm.Errorf(pcm.Forbidden, "user %d may not use this supervisor", cred.Uid)
	}
	return nil
}

// send queues a message; a peer that doesn't read is cut off, and asks again
// for everything when it comes back. It never blocks.
func (p *peer) send(m *message) {
	select {
	case p.out <- m:
	default:
		p.close()
	}
}

func (p *peer) close() {
	p.once.Do(func() { close(p.quit); p.conn.Close() })
}

// finish lets the writer empty its queue, then closes.
func (p *peer) finish() {
	select {
	case p.out <- nil:
	default:
		p.close()
	}
}

func (p *peer) write() {
	defer p.close()
	w := bufio.NewWriterSize(p.conn, 32<<10)
	for {
		var m *message
		select {
		case m = <-p.out:
		case <-p.quit:
			return
		}
		last := m == nil
		p.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		for m != nil {
			if err := writeMessage(w, m); err != nil {
				return
			}
			select {
			case m = <-p.out:
				last = m == nil
			default:
				m = nil
			}
		}
		if err := w.Flush(); err != nil || last {
			return
		}
	}
}

func (p *peer) read() {
	ctx, cancel := context.WithCancel(p.s.ctx)
	defer func() {
		cancel()
		p.close()
		p.s.mu.Lock()
		delete(p.s.peers, p)
		p.s.touch()
		p.s.mu.Unlock()
	}()
	r := bufio.NewReaderSize(p.conn, 32<<10)
	slots := make(chan struct{}, maxParallel)
	greeted := false
	for {
		m, err := readMessage(r)
		if err != nil {
			if pcm.ErrorCode(err) != pcm.Internal { // else the connection just ended
				p.s.log.Warn("bad message from a daemon", "err", err)
			}
			return
		}
		if !greeted {
			if greeted = p.greet(m); !greeted {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-p.quit:
			return
		}
		go func() {
			defer func() { <-slots }()
			p.send(p.answer(ctx, m))
		}()
	}
}

func (p *peer) greet(m *message) bool {
	if m.Op != opHello || m.Hello == nil {
		return false
	}
	if m.Hello.Max < minProtocol || m.Hello.Min > maxProtocol {
		p.send(&message{ID: m.ID, Op: opReply, Err: pcm.Errorf(pcm.Unavailable,
			"the running supervisor speaks protocol %d to %d, this daemon %d to %d: wait for its tasks to end, or end process %d",
			minProtocol, maxProtocol, m.Hello.Min, m.Hello.Max, os.Getpid())})
		p.finish()
		<-p.quit
		return false
	}
	p.send(&message{ID: m.ID, Op: opReply, Welcome: p.s.welcome(min(maxProtocol, m.Hello.Max))})
	return true
}

func (p *peer) answer(ctx context.Context, m *message) *message {
	reply := &message{ID: m.ID, Op: opReply}
	var err error
	switch m.Op {
	case opStart:
		err = p.s.start(ctx, m.Runner, m.Task)
	case opStop:
		err = p.s.stop(m.Key, time.Duration(min(max(m.GraceMS, 0), maxGraceMS))*time.Millisecond, m.Reason)
	case opRemove:
		err = p.s.remove(m.Key)
	case opList:
		reply.Statuses, reply.More = p.s.list(m.Runner, m.After)
	case opExtend:
		err = p.s.extend(m.Leases)
	case opSuspend, opResume:
		err = p.s.halt(m.Key, m.Op == opSuspend)
	case opRetire:
		err = p.s.retire()
	default:
		err = pcm.Errorf(pcm.Invalid, "unknown request %d", m.Op)
	}
	reply.Err = wireError(err)
	return reply
}

const maxGraceMS = 3600_000

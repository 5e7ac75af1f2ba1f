package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
)

// proc is one peer, which may be running.
type proc struct {
	cell  *testCell
	name  string
	id    pcm.PeerID
	cfg   PeerConfig
	votes bool // or it is a replica for ever

	mu     sync.Mutex
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	ended  chan struct{}
	rpc    *rpc.Client
	gone   bool // for good
	older  bool // of an older release
	spoilt bool // bits of its files were flipped: it may find itself damaged
}

func (p *proc) configure(change func(*PeerConfig)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.cfg)
}

func (p *proc) config() PeerConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg
}

// program is what the peer's process runs.
func (p *proc) program(self string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.older {
		return p.cell.older
	}
	return self
}

// setOlder says of which release the peer is from its next start on; it tells what it was.
func (p *proc) setOlder(older bool) (was bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was, p.older = p.older, older
	return was
}

func (p *proc) isOlder() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.older
}

// spoil notes that bits of the peer's files were flipped.
func (p *proc) spoil() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spoilt = true
}

func (p *proc) isSpoilt() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoilt
}

func (p *proc) isGone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

func (p *proc) runs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.gone {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *proc) logFile() string { return filepath.Join(p.cell.dir, p.name+".log") }

// errEnded is of a process that ended by itself while it was started.
var errEnded = errors.New("it has ended")

// start starts the process and waits until it answers.
func (p *proc) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p.program(self))
	cmd.Env = append(append(os.Environ(), peerEnv+"=1", "GOMAXPROCS=2"), p.cell.env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cfg := p.config()
	cfg.Book, cfg.NoVotes = p.cell.book(), p.cell.replicas()
	for id := range cfg.Book {
		cfg.Trust = append(cfg.Trust, id)
	}
	os.Remove(cfg.Socket) // so that the one that is dialled is new
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() // the state is kept in cmd
	}()
	if err := json.NewEncoder(stdin).Encode(cfg); err != nil {
		cmd.Process.Kill()
		<-ended
		return fmt.Errorf("%s: %w: %w", p.name, errEnded, err)
	}
	var conn net.Conn
	err = await(ctx, patience, p.name+" answers", func() error {
		select {
		case <-ended:
			return nil
		default:
		}
		var err error
		conn, err = net.Dial("unix", cfg.Socket)
		return err
	})
	if err != nil || conn == nil {
		cmd.Process.Kill()
		<-ended
		return cmp.Or(err, fmt.Errorf("%s: %w: %s", p.name, errEnded, p.tail(3)))
	}
	client := rpc.NewClient(conn)
	p.mu.Lock()
	p.cmd, p.stdin, p.ended, p.rpc = cmd, stdin, ended, client
	p.mu.Unlock()
	var addr string
	if err := p.call("Address", true, &addr, patience); err != nil {
		return err
	}
	p.configure(func(c *PeerConfig) { c.Listen, c.Founder = addr, false })
	for _, other := range p.cell.running() {
		other.call("NoVotes", p.cell.replicas(), new(bool), 5*time.Second)
		other.call("Book", map[pcm.PeerID]string{p.id: addr}, new(bool), 5*time.Second) // one that doesn't answer reads both when it starts
	}
	return nil
}

// tail is the end of the process's log.
func (p *proc) tail(lines int) string {
	data, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

var errDown = errors.New("the peer is down")

// call asks the process. One that is stopped answers too late.
func (p *proc) call(method string, in, out any, most time.Duration) error {
	p.mu.Lock()
	client := p.rpc
	p.mu.Unlock()
	if client == nil {
		return errDown
	}
	call := client.Go("Peer."+method, in, out, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return call.Error
	case <-time.After(most):
		return fmt.Errorf("%s did not answer within %s", p.name, most)
	}
}

func (p *proc) health(all bool) (Health, error) {
	var h Health
	err := p.call("Status", all, &h, 10*time.Second)
	if err == nil {
		p.cell.hear(h.LogTime)
		if h.Role == consensus.RoleLeader {
			if old := p.cell.terms.Load(); h.Term > old && p.cell.terms.CompareAndSwap(old, h.Term) && old > 0 {
				p.cell.leaders.Add(1)
			}
		}
	}
	return h, err
}

// records are all that the peer has.
func (p *proc) records() (all [][]byte, err error) {
	for {
		var page Page
		if err := p.call("Records", uint64(len(all)), &page, patience); err != nil {
			return all, fmt.Errorf("record %d: %w", len(all), err)
		}
		if len(page.Records) == 0 {
			return all, nil
		}
		all = append(all, page.Records...)
	}
}

// signal sends a signal; a process that has ended needs none.
func (p *proc) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.cmd.Process.Signal(s)
	}
}

// kill ends the process as a crash does, and waits for its end.
func (p *proc) kill() {
	p.signal(syscall.SIGKILL)
	p.wait()
}

// stop ends the process as an operator does.
func (p *proc) stop() {
	p.mu.Lock()
	if p.stdin != nil {
		p.stdin.Close()
	}
	ended := p.ended
	p.mu.Unlock()
	if ended == nil {
		return
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		p.signal(syscall.SIGKILL)
	}
	p.wait()
}

func (p *proc) wait() {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	if ended == nil {
		return
	}
	<-ended
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rpc != nil {
		p.rpc.Close()
		p.rpc = nil
	}
	if p.stdin != nil {
		p.stdin.Close()
		p.stdin = nil
	}
}

// abandon takes the peer out of the run for good.
func (p *proc) abandon() {
	p.kill()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
}

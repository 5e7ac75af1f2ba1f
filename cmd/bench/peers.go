package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// peer is one running process of the program.
type peer struct {
	name    string
	data    string
	cmd     *exec.Cmd
	c       *api.Client
	id      pcm.PeerID
	ended   chan struct{}
	started time.Time
	ready   time.Duration // from its start
}

// settings are what peers of a mesh differ in.
type settings struct {
	sandbox string // of the process adapter
	price   string // of a task there; "": the default
	token   string

	adapters string // the section of the configuration, in place of the one made of the above
}

// config is a peer's configuration: any free ports, its name as a label, so that
// a job can be sent to it.
const config = `name: %[1]s
api: 127.0.0.1:0
listen: [/ip4/127.0.0.1/udp/0/quic-v1, /ip4/127.0.0.1/tcp/0]
labels: {site: %[1]s}
credit_limit: 1000000
adapters:
%[2]slog: {level: warn, format: json}
`

// start starts a peer and waits until it is ready.
func (b *bench) start(ctx context.Context, name string, s settings) (*peer, error) {
	p := &peer{name: name, ended: make(chan struct{})}
	var err error
	if p.data, err = os.MkdirTemp(b.dir, name+"-"); err != nil {
		return nil, err
	}
	section := cmp.Or(s.adapters, fmt.Sprintf("  process: {sandbox: %s, allow_unsandboxed: true, price: {per_task: %s}}\n", s.sandbox, cmp.Or(s.price, "0.001")))
	if err := os.WriteFile(filepath.Join(p.data, "config.yaml"), fmt.Appendf(nil, config, name, section), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(p.data, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"up", "--data", p.data}
	if s.token != "" {
		args = append(args, "--join", s.token)
	}
	p.cmd = exec.Command(b.pcm, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.started = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait() // how it ended is in its log
		close(p.ended)
	}()
	if p.c, err = api.Dial(api.Target{Data: p.data}); err != nil {
		return nil, err
	}
	err = until(ctx, 30*time.Second, 2*time.Millisecond, name+" is ready", func() (bool, error) {
		select {
		case <-p.ended:
			text, _ := os.ReadFile(filepath.Join(p.data, "log"))
			return false, fmt.Errorf("%s ended: %s", name, text)
		default:
		}
		return p.c.Ready(ctx) == nil, nil
	})
	p.ready = time.Since(p.started)
	if err != nil {
		p.kill()
		return nil, err
	}
	st, err := p.c.Status(ctx)
	p.id = st.ID
	return p, err
}

// until waits for a condition.
func until(ctx context.Context, most, every time.Duration, what string, ok func() (bool, error)) error {
	deadline := time.Now().Add(most)
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s in vain until %s", most, what)
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop ends a peer in order, and its supervisor.
func (p *peer) stop() {
	super := supervisorOf(p.data)
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(12 * time.Second):
		p.kill()
	}
	if super > 0 {
		syscall.Kill(super, syscall.SIGKILL)
	}
	p.c.Close()
}

// kill ends the daemon at once, and leaves its supervisor and tasks.
func (p *peer) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// trio is a mesh of three peers of three accounts, which are the voters of one cell.
type trio [3]*peer

// mesh starts three peers and joins them; prices are of a task at each of them.
func (b *bench) mesh(ctx context.Context, sandbox string, prices ...string) (trio, error) {
	var t trio
	names := [3]string{"alpha", "beta", "gamma"}
	for i, name := range names {
		s := settings{sandbox: sandbox}
		if i < len(prices) {
			s.price = prices[i]
		}
		if i > 0 {
			inv, err := t[0].c.Invite(ctx, time.Hour, false)
			if err != nil {
				t.stop()
				return t, err
			}
			s.token = inv.Token
		}
		p, err := b.start(ctx, name, s)
		if err != nil {
			t.stop()
			return t, err
		}
		t[i] = p
	}
	err := until(ctx, time.Minute, 50*time.Millisecond, "three voters see six pools", func() (bool, error) {
		for _, p := range t {
			cells, err := p.c.Cells(ctx)
			if err != nil {
				return false, err
			}
			voters := 0
			for _, m := range cells.Items[0].Members {
				if m.Role == "leader" || m.Role == "voter" {
					voters++
				}
			}
			offers, err := p.c.Offers(ctx)
			if err != nil {
				return false, err
			}
			free := 0
			for _, o := range offers.Items {
				if o.Free != nil {
					free++
				}
			}
			if voters != 3 || free != 6 {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		t.stop()
	}
	return t, err
}

func (t trio) stop() {
	for i := len(t) - 1; i >= 0; i-- {
		if t[i] != nil {
			t[i].stop()
		}
	}
}

// roles tells the peers by what they are in the cell: its leader, and the two others.
func (t trio) roles(ctx context.Context) (leader, one, other *peer, err error) {
	st, err := t[0].c.Status(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	var followers []*peer
	for _, p := range t {
		if p.id == st.Leader {
			leader = p
		} else {
			followers = append(followers, p)
		}
	}
	if leader == nil || len(followers) != 2 {
		return nil, nil, nil, errors.New("the cell has no leader now")
	}
	return leader, followers[0], followers[1], nil
}

// sandboxOf is what the peers' process pools say of their sandbox.
func (t trio) sandboxOf(ctx context.Context) (string, error) {
	offers, err := t[0].c.Offers(ctx)
	if err != nil {
		return "", err
	}
	for _, o := range offers.Items {
		if o.Pool.Adapter == "process" {
			return o.Pool.Sandbox, nil
		}
	}
	return "", errors.New("nobody sells processes")
}

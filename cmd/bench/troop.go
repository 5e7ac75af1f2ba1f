package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
)

// process is one of the bench's own processes.
type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	addr string
	id   pcm.PeerID
}

// troop is a cell under measurement: a process for each member, and one that calls.
type troop struct {
	plan    plan
	path    string // of the plan
	members []*process
	caller  *process
}

// troop starts a cell of some voters and its caller.
func (b *bench) troop(ctx context.Context, members int, change func(*plan)) (_ *troop, err error) {
	dir, err := os.MkdirTemp(b.dir, "cell-")
	if err != nil {
		return nil, err
	}
	root := pcm.NewKey()
	t := &troop{path: filepath.Join(dir, "plan.json"), plan: plan{
		Dir: dir, Mesh: pcm.NewMeshID(root.Public()), Cell: pcm.NewCellID(), Root: root.Seed(), Members: seeds(members),
		Caller: pcm.NewKey().Seed(), Signers: seeds(64), Checks: 1, Profile: b.profile, Debug: b.all,
	}}
	if change != nil {
		change(&t.plan)
	}
	defer func() {
		if err != nil {
			t.stop()
		}
	}()
	data, err := json.Marshal(t.plan)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(t.path, data, 0o600); err != nil {
		return nil, err
	}
	for i := range members {
		p, err := t.start(i)
		if err != nil {
			return nil, err
		}
		t.members = append(t.members, p)
	}
	if t.caller, err = t.start(-1); err != nil {
		return nil, err
	}
	if err := t.meet(); err != nil {
		return nil, err
	}
	for _, p := range t.all() {
		if _, err := p.order(order{Do: "open"}); err != nil {
			return nil, err
		}
	}
	if _, err := t.members[0].order(order{Do: "grow"}); err != nil {
		return nil, err
	}
	for _, p := range t.members {
		err := until(ctx, time.Minute, 20*time.Millisecond, "all are voters", func() (bool, error) {
			a, err := p.order(order{Do: "status"})
			return a.Status.Voters == members, err
		})
		if err != nil {
			return nil, err
		}
	}
	_, err = t.caller.order(order{Do: "enrol"})
	return t, err
}

func (t *troop) all() []*process { return append([]*process{t.caller}, t.members...) }

// meet tells all of each other's addresses.
func (t *troop) meet() error {
	var addrs []string
	for _, p := range t.all() {
		addrs = append(addrs, p.addr)
	}
	for _, p := range t.all() {
		if _, err := p.order(order{Do: "meet", Peers: addrs}); err != nil {
			return err
		}
	}
	return nil
}

// start starts a member, or the caller (-1).
func (t *troop) start(at int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{}
	p.cmd = exec.Command(self, "member", t.path, strconv.Itoa(at))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(bufio.NewReader(out))
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	var a answer
	if err := p.out.Decode(&a); err != nil {
		p.kill()
		return nil, fmt.Errorf("a process of the bench did not start: %w", err)
	}
	p.addr = a.Addr
	p.id = keyOf(t.plan.Caller).Peer()
	if at >= 0 {
		p.id = keyOf(t.plan.Members[at]).Peer()
	}
	return p, nil
}

// order sends an order and waits for its answer.
func (p *process) order(o order) (a answer, err error) {
	if err := p.send(o); err != nil {
		return a, err
	}
	return p.answer()
}

func (p *process) send(o order) error { return json.NewEncoder(p.in).Encode(o) }

func (p *process) answer() (a answer, err error) {
	if err := p.out.Decode(&a); err != nil {
		return a, fmt.Errorf("a process of the bench has ended: %w", err)
	}
	if a.Err != "" {
		return a, fmt.Errorf("%s", a.Err)
	}
	return a, nil
}

// kill ends a process as a crash would.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait() // how it ended is what was wanted
}

// leader is the place of the member that leads.
func (t *troop) leader() (int, error) {
	for range 100 {
		for _, p := range t.members {
			a, err := p.order(order{Do: "status"})
			if err != nil {
				return 0, err
			}
			for i, q := range t.members {
				if q.id == a.Status.Leader {
					return i, nil
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return 0, fmt.Errorf("the cell has no leader")
}

// restart starts a killed member again.
func (t *troop) restart(at int) error {
	p, err := t.start(at)
	if err != nil {
		return err
	}
	t.members[at] = p
	if err := t.meet(); err != nil {
		return err
	}
	_, err = p.order(order{Do: "open"})
	return err
}

// level waits until all members have applied the same.
func (t *troop) level(ctx context.Context) error {
	return until(ctx, 2*time.Minute, 50*time.Millisecond, "all members have applied the same", func() (bool, error) {
		var first uint64
		for i, p := range t.members {
			a, err := p.order(order{Do: "status"})
			if err != nil {
				return false, err
			}
			if i == 0 {
				first = a.Status.Records
			}
			if a.Status.Records != first || a.Status.Leader == "" || a.Status.Voters != len(t.members) {
				return false, nil
			}
		}
		return true, nil
	})
}

// stop ends all in order.
func (t *troop) stop() {
	for _, p := range t.all() {
		if p == nil {
			continue
		}
		p.in.Close()
		timer := time.AfterFunc(12*time.Second, func() { p.cmd.Process.Kill() })
		p.cmd.Wait() // a process that was killed in a measurement ends with an error
		timer.Stop()
	}
}

// entries is how many entries the founder has applied.
func (t *troop) entries() (uint64, error) {
	a, err := t.members[0].order(order{Do: "status"})
	return a.Status.Applied, err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// stage is where the demo plays: its folder, its peers, and the servers that they sell.
type stage struct {
	program, dir string
	peers        []*nodetest.Process
	servers      servers
	cloud        *cloud // nil: none was started
}

// role is a peer with its configuration.
type role struct{ name, does, config string }

// cast are the peers of the demo without servers.
var cast = []role{
	{"anna", "sells processes", `# anna sells this machine to anybody, as native processes.
adapters:
  process:
    allow_unsandboxed: true   # where bubblewrap is not installed
    price: {per_task: "0.002"}
  wasm:
    enabled: false
`},
	{"bert", "sells processes and WebAssembly, cheaper", `# bert sells processes and WebAssembly, at other prices.
adapters:
  process:
    allow_unsandboxed: true
    price: {per_task: "0.001"}
  wasm:
    price: {per_task: "0.0005"}
`},
	{"carl", "sells nothing, and buys", `# carl sells nothing.
adapters:
  process:
    enabled: false
  wasm:
    enabled: false
`},
}

func (s *stage) peer(name string) *nodetest.Process {
	for _, p := range s.peers {
		if p.Name == name {
			return p
		}
	}
	panic("no peer is called " + name)
}

// found makes a mesh of the cast.
func (s *stage) found(ctx context.Context) error {
	title("1. Three peers of three owners become one mesh")
	tell("Each is a process of its own, with its own keys and data folder below %s.", s.dir)
	if err := s.raise(ctx, cast); err != nil {
		return err
	}
	tell("\nThe three form a cell by themselves: a Raft group whose members keep one ledger.")
	err := await(ctx, func(ctx context.Context) error { return s.whole(ctx, 3) })
	if err != nil {
		return err
	}
	if _, err := s.show(ctx, "carl", "cell", "status"); err != nil {
		return err
	}
	tell("\ncarl, who sells nothing, sees what the others sell, and at which price:")
	_, err = s.show(ctx, "carl", "offers")
	return err
}

// raise starts peers; the first of all founds the mesh, and the others join it by its tokens.
func (s *stage) raise(ctx context.Context, cast []role) error {
	for _, c := range cast {
		config := filepath.Join(s.dir, c.name+".yaml")
		if err := os.WriteFile(config, []byte(c.config), 0o600); err != nil {
			return err
		}
		p := &nodetest.Process{Binary: s.program, Name: c.name, Dir: filepath.Join(s.dir, c.name), Config: config, Log: filepath.Join(s.dir, c.name+".log")}
		s.peers = append(s.peers, p)
		first := s.peers[0]
		var join []string
		if p != first {
			r, err := first.CLI(ctx, "invite", "-o", "json")
			if err != nil || r.Code != 0 {
				return fmt.Errorf("pcm invite: %v %s", err, r.Stderr)
			}
			token, err := tokenOf(r.Stdout)
			if err != nil {
				return err
			}
			fmt.Printf("\n%s$ pcm invite\n%s…\n", first.Name, token[:48])
			join = []string{"--join", token}
		}
		shown := "pcm up --config " + c.name + ".yaml"
		if p != first {
			shown += " --join " + join[1][:12] + "…"
		}
		fmt.Printf("%s$ %s   # %s\n", c.name, shown, c.does)
		if err := p.Start(join...); err != nil {
			return err
		}
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// whole is nil when three voters keep the ledger and all offers are known to all.
func (s *stage) whole(ctx context.Context, sold int) error {
	for _, p := range s.peers {
		cells, err := p.Client().Cells(ctx)
		if err != nil {
			return err
		}
		voters := 0
		for _, m := range cells.Items[0].Members {
			if m.Role == "leader" || m.Role == "voter" {
				voters++
			}
		}
		offers, err := p.Client().Offers(ctx)
		if err != nil {
			return err
		}
		if voters != 3 || len(offers.Items) != sold {
			return fmt.Errorf("%s sees %d voters and %d offers", p.Name, voters, len(offers.Items))
		}
	}
	return nil
}

// show runs the command line against a peer, and shows both command and output.
func (s *stage) show(ctx context.Context, peer string, args ...string) (string, error) {
	fmt.Printf("\n%s$ pcm %s\n", peer, strings.Join(args, " "))
	cmd := s.peer(peer).Command(ctx, args...)
	cmd.Dir = s.dir
	r, err := nodetest.Run(cmd)
	if err != nil {
		return "", err
	}
	fmt.Println(strings.TrimRight(r.Stdout, "\n"))
	if r.Code != 0 {
		return "", fmt.Errorf("pcm %s ended with status %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout, nil
}

// submit submits a job of a spec file through carl, with or without waiting, and returns it.
func (s *stage) submit(ctx context.Context, file string, flags ...string) (api.Job, error) {
	before, err := s.carl().Jobs(ctx, api.Query{})
	if err != nil {
		return api.Job{}, err
	}
	if _, err := s.show(ctx, "carl", append([]string{"job", "run", file}, flags...)...); err != nil {
		return api.Job{}, err
	}
	after, err := s.carl().Jobs(ctx, api.Query{})
	if err != nil {
		return api.Job{}, err
	}
	if len(after.Items) != len(before.Items)+1 {
		return api.Job{}, fmt.Errorf("carl has %d jobs, had %d", len(after.Items), len(before.Items))
	}
	return after.Items[0], nil
}

func (s *stage) carl() *api.Client { return s.peer("carl").Client() }

// settled waits until nothing of a job is open, and checks that all of it went well.
func (s *stage) settled(ctx context.Context, id pcm.JobID) (api.Job, []api.Task, error) {
	var job api.Job
	err := await(ctx, func(ctx context.Context) (err error) {
		if job, err = s.carl().Job(ctx, string(id)); err == nil && !api.Settled(job) {
			err = fmt.Errorf("%s is %s, not settled", id, job.State)
		}
		return err
	})
	if err != nil {
		return job, nil, err
	}
	if job.State != pcm.JobDone {
		return job, nil, fmt.Errorf("%s is %s: %s", id, job.State, job.Reason)
	}
	tasks, err := s.carl().Tasks(ctx, string(id), api.Query{})
	return job, tasks.Items, err
}

// file writes a file for the demo and shows its text.
func (s *stage) file(name, text string) error {
	fmt.Printf("\ncarl$ cat %s\n%s", name, text)
	return os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600)
}

// end stops every peer, in order where it can, and removes what is left.
func (s *stage) end() error {
	if len(s.peers) > 0 {
		title("The end")
		tell("Every peer is stopped.")
	}
	var errs []error
	for i := len(s.peers) - 1; i >= 0; i-- { // the first leads: it goes last
		p := s.peers[i]
		if p.Ended() == nil {
			continue
		}
		if _, err := p.Stop(); err != nil {
			errs = append(errs, err)
		}
	}
	s.retire()
	for _, p := range s.peers {
		errs = append(errs, p.Sweep())
	}
	errs = append(errs, s.servers.close())
	if s.cloud != nil {
		errs = append(errs, s.cloud.close())
	}
	if left := nodetest.Leftovers(s.dir); len(left) > 0 {
		errs = append(errs, fmt.Errorf("processes %v are left", left))
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// await waits until a condition holds, for as long as patience says; in time it tells
// what is awaited, and no look at it goes on for ever.
func await(ctx context.Context, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began, told := time.Now(), false
	return nodetest.Await(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience/9)
		defer cancel()
		err := condition(ctx)
		if err != nil && !told && time.Since(began) > patience/3 {
			told = true
			tell("… still waiting: %v", err)
		}
		return err
	})
}

// retire asks the peers' supervisors to end, and what they run at their back ends
// with them. What does not come to an end by that, is swept away.
func (s *stage) retire() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, p := range s.peers {
		if pid := p.Supervisor(); pid != 0 {
			syscall.Kill(pid, syscall.SIGTERM)
		}
	}
	nodetest.Await(ctx, func(context.Context) error {
		for _, p := range s.peers {
			if p.Supervisor() != 0 {
				return fmt.Errorf("the supervisor of %s still runs", p.Name)
			}
		}
		return nil
	})
}

// explain shows the ends of the peers' logs, after a failure.
func (s *stage) explain() {
	for _, p := range s.peers {
		fmt.Fprintf(os.Stderr, "\nThe end of %s's log:\n%s\n", p.Name, p.Tail(15))
	}
}

// since is a duration for people.
func since(t time.Time) string { return fmt.Sprintf("%.1f s", time.Since(t).Seconds()) }

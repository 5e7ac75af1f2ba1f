package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/node/api"
)

// up measures a founding peer: its start, what it costs at rest, its size.
func (b *bench) up(ctx context.Context) error {
	fmt.Println("up: a founding peer without configuration of note")
	if info, err := os.Stat(b.pcm); err == nil {
		figure("size of the binary", fmt.Sprintf("%.1f MiB", float64(info.Size())/(1<<20)), "target < 45 MiB, stripped")
	}
	var starts []time.Duration
	var p *peer
	for i := range 5 {
		var err error
		if p, err = b.start(ctx, fmt.Sprintf("solo%d", i), settings{sandbox: "auto"}); err != nil {
			return err
		}
		starts = append(starts, p.ready)
		if i < 4 {
			p.stop()
		}
	}
	defer p.stop()
	figure("pcm up to ready, median of 5", ms(quantile(starts, 0.5)), "target < 500 ms")
	if err := sleep(ctx, 5*time.Second); err != nil { // let the start's garbage go
		return err
	}
	before, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := sleep(ctx, b.idle-5*time.Second); err != nil {
		return err
	}
	after, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	cpu := float64(after.minus(before).cpu) / float64(b.idle-5*time.Second) * 100
	figure("idle: share of one core", fmt.Sprintf("%.2f %%", cpu), "target < 1 %")
	figure(fmt.Sprintf("idle for %s: memory of the daemon", b.idle), mib(after.rss), "")
	supervisor, err := usageOf(supervisorOf(p.data))
	if err != nil {
		return err
	}
	figure("  with its supervisor", mib(after.rss+supervisor.rss), "target < 64 MiB")
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trivial are jobs whose tasks do nothing.
func (b *bench) trivial() (wasm, native pcm.Step, err error) {
	path := filepath.Join(b.dir, "nothing.wasm")
	if err := os.WriteFile(path, adaptertest.Module("_start", 1, adaptertest.BodyNothing...), 0o600); err != nil {
		return wasm, native, err
	}
	ask := pcm.Ask{CPU: "100m", Memory: "16MiB"}
	wasm = pcm.Step{Name: "run", Module: path, Resources: ask, TimeLimit: "1m"}
	native = pcm.Step{Name: "run", Command: []string{"true"}, Resources: ask, TimeLimit: "1m"}
	return wasm, native, nil
}

// runJob submits a job of one step and waits until all of it is settled.
func runJob(ctx context.Context, p *peer, step pcm.Step, strategy string) (api.Job, time.Duration, error) {
	return runJobWithin(ctx, 5*time.Minute, p, step, strategy)
}

func runJobWithin(ctx context.Context, most time.Duration, p *peer, step pcm.Step, strategy string) (api.Job, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	begun := time.Now()
	j, err := p.c.Submit(ctx, api.Submission{Spec: pcm.Spec{Name: "bench", Strategy: strategy, Steps: []pcm.Step{step}}})
	if err != nil {
		return j, 0, err
	}
	j, err = p.c.WaitJob(ctx, j.ID, api.Settled)
	took := time.Since(begun)
	if err == nil && (j.State != pcm.JobDone || j.Counts.Done != max(step.Count, 1)) {
		err = fmt.Errorf("job %s is %s with %d of %d tasks done: %s", j.ID, j.State, j.Counts.Done, max(step.Count, 1), j.Reason)
	}
	return j, took, err
}

// job measures one trivial job on a cell of three voters, from a buyer to a
// seller that are both followers.
func (b *bench) job(ctx context.Context) error {
	t, err := b.mesh(ctx, "auto")
	if err != nil {
		return err
	}
	defer t.stop()
	_, buyer, seller, err := t.roles(ctx)
	if err != nil {
		return err
	}
	sandbox, err := t.sandboxOf(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("job: one trivial job, submit to settled, %d runs; three voters, buyer and seller are followers\n", b.jobs)
	wasm, native, err := b.trivial()
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		step pcm.Step
	}{{"tiny WebAssembly module", wasm}, {"true, sandbox " + sandbox, native}} {
		c.step.Labels = pcm.Labels{"site": seller.name}
		for range 5 { // compiles, connects
			if _, _, err := runJob(ctx, buyer, c.step, ""); err != nil {
				return err
			}
		}
		w, err := t.watch(ctx)
		if err != nil {
			return err
		}
		var times []time.Duration
		for range b.jobs {
			_, took, err := runJob(ctx, buyer, c.step, "")
			if err != nil {
				return err
			}
			times = append(times, took)
		}
		figure(c.name+": median", ms(quantile(times, 0.5)), "target < 40 ms")
		figure(c.name+": p99", ms(quantile(times, 0.99)), "target < 200 ms")
		if err := w.report(ctx, b.jobs, "job"); err != nil {
			return err
		}
	}
	return nil
}

// array measures arrays over three sellers.
func (b *bench) array(ctx context.Context) error {
	fmt.Printf("array: %d tasks over three peers, each with its own folder, exit code, log and committed result\n", b.many)
	for _, sandbox := range []string{"none", "auto"} {
		if err := b.arrays(ctx, sandbox); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) arrays(ctx context.Context, sandbox string) error {
	t, err := b.mesh(ctx, sandbox)
	if err != nil {
		return err
	}
	defer t.stop()
	has, err := t.sandboxOf(ctx)
	if err != nil {
		return err
	}
	wasm, native, err := b.trivial()
	if err != nil {
		return err
	}
	type kind struct {
		name, target string
		step         pcm.Step
	}
	kinds := []kind{{"tiny WebAssembly module", "target > 400 tasks/s", wasm}, {"true, no sandbox", "target > 150 tasks/s", native}}
	if sandbox != "none" {
		if has == "none" {
			fmt.Println("  NO BUBBLEWRAP HERE: the sandbox is NOT measured")
			return nil
		}
		kinds = []kind{{"true, sandbox " + has, "target > 60 tasks/s", native}}
	}
	for _, k := range kinds {
		k.step.Count = 30
		if _, _, err := runJob(ctx, t[0], k.step, "spread"); err != nil { // compiles, connects
			return err
		}
		k.step.Count = b.many
		w, err := t.watch(ctx)
		if err != nil {
			return err
		}
		j, took, err := runJob(ctx, t[0], k.step, "spread")
		if err != nil {
			return err
		}
		figure(k.name, fmt.Sprintf("%.0f tasks/s", float64(b.many)/took.Seconds()), k.target)
		if err := t.shares(ctx, j.ID); err != nil {
			return err
		}
		if err := w.report(ctx, b.many, "task"); err != nil {
			return err
		}
	}
	return nil
}

// shares prints how the tasks of a job were shared among sellers.
func (t trio) shares(ctx context.Context, job pcm.JobID) error {
	tasks, err := t[0].c.Tasks(ctx, string(job), api.Query{})
	if err != nil {
		return err
	}
	by := map[string]int{}
	for _, task := range tasks.Items {
		by[task.SellerName]++
	}
	trades, err := t[0].c.Trades(ctx, api.Query{Job: job})
	if err != nil {
		return err
	}
	figure("  shared", fmt.Sprintf("alpha %d, beta %d, gamma %d in %d trades", by["alpha"], by["beta"], by["gamma"], len(trades.Items)), "")
	return nil
}

// module measures a whole Go program compiled to WebAssembly, run many times.
func (b *bench) module(ctx context.Context) error {
	path := filepath.Join(b.dir, "module.wasm")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/bench/module")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	t, err := b.mesh(ctx, "none")
	if err != nil {
		return err
	}
	defer t.stop()
	_, buyer, seller, err := t.roles(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("module: a Go program for WASI of %.1f MiB, %d runs one after the other\n", float64(info.Size())/(1<<20), b.mods)
	step := pcm.Step{
		Name: "run", Module: path, Resources: pcm.Ask{CPU: "100m", Memory: "128MiB"}, TimeLimit: "1m",
		Labels: pcm.Labels{"site": seller.name},
	}
	_, first, err := runJob(ctx, buyer, step, "")
	if err != nil {
		return err
	}
	memory := func() (string, error) {
		node, err := usageOf(seller.cmd.Process.Pid)
		if err != nil {
			return "", err
		}
		super, err := usageOf(supervisorOf(seller.data))
		return fmt.Sprintf("%s + %s", mib(node.rss), mib(super.rss)), err
	}
	early, err := memory()
	if err != nil {
		return err
	}
	var times []time.Duration
	for i := range b.mods {
		_, took, err := runJob(ctx, buyer, step, "")
		if err != nil {
			return err
		}
		times = append(times, took)
		if i == b.mods/4 {
			if early, err = memory(); err != nil {
				return err
			}
		}
	}
	late, err := memory()
	if err != nil {
		return err
	}
	figure("first run: fetched and compiled", ms(first), "")
	figure("later runs: median", ms(quantile(times, 0.5)), "compiled once")
	figure("later runs: p99", ms(quantile(times, 0.99)), "")
	figure("memory of seller + supervisor after a quarter", early, "")
	figure("memory of seller + supervisor at the end", late, "target: flat")
	return nil
}

// loss measures how long it takes until a task of a killed seller runs elsewhere.
func (b *bench) loss(ctx context.Context) error {
	fmt.Println("loss: a seller is killed with -9 two seconds into a task")
	for _, leads := range []bool{false, true} {
		if err := b.lossOf(ctx, leads); err != nil {
			return err
		}
	}
	return nil
}

// lossOf kills a seller that leads the cell, or one that doesn't.
func (b *bench) lossOf(ctx context.Context, leads bool) error {
	prices := []string{"0.002", "0.003", "0.001"} // the cheapest is asked first
	victim, who := 2, "a follower"
	if leads {
		prices = []string{"0.001", "0.003", "0.002"}
		victim, who = 0, "the cell's leader as well"
	}
	t, err := b.mesh(ctx, "none", prices...)
	if err != nil {
		return err
	}
	defer t.stop()
	buyer, seller := t[1], t[victim]
	if leader, _, _, err := t.roles(ctx); err != nil || leader != t[0] {
		return fmt.Errorf("the founder does not lead its cell (%v): nothing to compare", err)
	}
	j, err := buyer.c.Submit(ctx, api.Submission{Spec: pcm.Spec{
		Name: "loss", Steps: []pcm.Step{{
			Name: "run", Command: []string{"sleep", "3600"}, Resources: pcm.Ask{CPU: "100m", Memory: "16MiB"},
		}},
	}})
	if err != nil {
		return err
	}
	// running is the task once its attempt, or a later one, runs somewhere.
	running := func(attempt int) (k api.Task, ok bool, err error) {
		tasks, err := buyer.c.Tasks(ctx, string(j.ID), api.Query{})
		if err != nil || len(tasks.Items) != 1 {
			return k, false, err
		}
		if k = tasks.Items[0]; k.Attempt < attempt || k.State != pcm.TaskPlaced {
			return k, false, nil
		}
		trade, err := buyer.c.Trade(ctx, string(k.Trade))
		return k, err == nil && trade.States[pcm.AttemptStarted] == 1, err
	}
	var first, second api.Task
	if err := until(ctx, 20*time.Second, 10*time.Millisecond, "the task runs", func() (ok bool, err error) {
		first, ok, err = running(1)
		return ok, err
	}); err != nil {
		return err
	}
	if first.Seller != seller.id {
		return fmt.Errorf("the task runs at %s, not at %s", first.SellerName, seller.name)
	}
	if err := sleep(ctx, 2*time.Second); err != nil {
		return err
	}
	seller.kill()
	killed := time.Now()
	if err := until(ctx, time.Minute, 10*time.Millisecond, "the task runs elsewhere", func() (ok bool, err error) {
		second, ok, err = running(2)
		return ok, err
	}); err != nil {
		return err
	}
	figure("killed ("+who+") to running elsewhere", fmt.Sprintf("%.1f s", time.Since(killed).Seconds()), "target < 15 s")
	if second.Seller == seller.id {
		return fmt.Errorf("the second attempt is at the seller that was killed")
	}
	_, err = buyer.c.Cancel(ctx, string(j.ID), "measured")
	return err
}

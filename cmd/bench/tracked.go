package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
	"github.com/jointcloud/pcm/node/api"
)

// tracked measures the memory of a node that keeps track of many tasks in the queue
// of a back end. A private Slurm runs a few of them; they do not end by themselves.
func (b *bench) tracked(ctx context.Context) error {
	n := 10 * b.tasks
	s, err := server.StartSlurm(ctx, server.SlurmOptions{Nodes: 2, Memory: 500_000})
	if errors.Is(err, server.ErrMissing) {
		fmt.Printf("tracked: NO SLURM HERE, it is NOT measured: %v\n", err)
		return nil
	}
	if err != nil {
		return err
	}
	err = b.track(ctx, s, n)
	return errors.Join(err, s.Close())
}

func (b *bench) track(ctx context.Context, s *server.Slurm, n int) error {
	fmt.Printf("tracked: %d tasks in the queue of a Slurm\n", n)
	p, err := b.start(ctx, "slurm", settings{adapters: fmt.Sprintf(
		"  process: {enabled: false}\n  wasm: {enabled: false}\n  slurm: {enabled: true, conf: %s, partitions: [main], slots: %d}\n", s.Conf, n)})
	if err != nil {
		return err
	}
	defer p.stop()
	if err := until(ctx, time.Minute, 50*time.Millisecond, "slurm is offered", func() (bool, error) {
		offers, err := p.c.Offers(ctx)
		return err == nil && len(offers.Items) > 0 && offers.Items[0].Free != nil, err
	}); err != nil {
		return err
	}
	before, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	begun := time.Now()
	// So little CPU that the offer holds all of them; Slurm gives each a whole core.
	step := pcm.Step{Name: "run", Command: []string{"sleep", "1d"}, Count: n, Resources: pcm.Ask{CPU: "1m", Memory: "64MiB"}, TimeLimit: "2h"}
	j, err := p.c.Submit(ctx, api.Submission{Spec: pcm.Spec{Name: "tracked", Steps: []pcm.Step{step}}})
	if err != nil {
		return err
	}
	if err := until(ctx, backendWait, time.Second, "all are in Slurm's queue", func() (bool, error) {
		out, err := s.Command(ctx, "squeue", "--noheader", "--array", "--format=%T")
		return strings.Count(out, "\n") >= n, err
	}); err != nil {
		return err
	}
	took := time.Since(begun)
	figure(fmt.Sprintf("%d tasks, from submit to Slurm's queue", n), fmt.Sprintf("%.1f s", took.Seconds()), "")
	figure("  memory of the daemon, before", mib(before.rss), "")
	for _, at := range []struct {
		when  string
		after time.Duration
	}{{"just then", 0}, {"a minute later", time.Minute}} {
		if err := sleep(ctx, at.after); err != nil {
			return err
		}
		daemon, err := usageOf(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		supervisor, err := usageOf(supervisorOf(p.data))
		if err != nil {
			return err
		}
		figure("  memory of daemon and supervisor, "+at.when, mib(daemon.rss+supervisor.rss), "target < 150 MiB")
		figure("  of these the supervisor", mib(supervisor.rss), "")
	}
	_, err = p.c.Cancel(ctx, string(j.ID), "measured")
	return err
}

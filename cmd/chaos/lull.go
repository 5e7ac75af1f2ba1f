package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// Harm to a cell that nobody uses, and whose peers rest: they beat seldom then, and wait
// long for each other.
var atRest = []fault{
	{"kill -9 of the leader at rest", 1, false, (*nemesis).killLeader},
	{"leader cut off at rest", 1, false, func(n *nemesis, ctx context.Context, rng *rand.Rand) error {
		// It believes for seconds that it leads, whoever else does.
		return n.isolateLeaderFor(ctx, rng, 5*time.Second, 7*time.Second)
	}},
	{"SIGSTOP of the leader at rest", 1, false, func(n *nemesis, ctx context.Context, rng *rand.Rand) error {
		leader := n.cell.leader()
		if leader == nil {
			return errNobody
		}
		leader.signal(syscall.SIGSTOP) // its connections stay
		hold(ctx, rng, 5*time.Second, 7*time.Second)
		leader.signal(syscall.SIGCONT)
		return nil
	}},
}

// shortLulls is how many of them a short run deals out to its cells.
const shortLulls = 2

// lull waits until a cell rests, and harms it, once by each fault. At the moment of the
// fault clients write and read again: these must wake the cell, and see nothing but its last state.
// It is called when no other load and no other nemesis is left.
func (n *nemesis) lull(ctx context.Context, seed uint64, faults []fault) error {
	rng := rand.New(rand.NewPCG(seed, 11))
	for round, f := range faults {
		if err := n.calm(); err != nil {
			return err
		}
		if err := n.rest(ctx); err != nil {
			return err
		}
		if err := n.dozes(ctx); err != nil {
			return err
		}
		use, end := context.WithCancel(ctx)
		var users sync.WaitGroup
		users.Go(func() { n.c.audit(use) })
		for i, v := range n.c.values {
			for j := range valueClients {
				rng := rand.New(rand.NewPCG(seed, uint64(5000+1000*round+10*i+j)))
				users.Go(func() { n.c.register(use, rng, v, i, valueClients*i+j) })
			}
		}
		acked := n.c.acked.Load()
		err := n.inject(ctx, f, rng)
		if err == nil {
			err = await(ctx, patience, n.cell.name+" is used after its rest", func() error {
				if n.c.acked.Load() == acked {
					return fmt.Errorf("nothing is acknowledged since")
				}
				return nil
			})
		}
		end()
		users.Wait()
		if err != nil {
			return fmt.Errorf("%s: %s: %w", n.cell.name, f.name, err)
		}
	}
	return nil
}

// dozes waits until all peers rest. What the load has left behind keeps them awake until it is over.
func (n *nemesis) dozes(ctx context.Context) error {
	return await(ctx, patience, n.cell.name+" rests", func() error {
		for _, p := range n.cell.all() {
			h, err := p.health(false)
			if err != nil {
				return err
			}
			if !h.Resting {
				return fmt.Errorf("%s, which is %s, does not rest", p.name, h.Role)
			}
		}
		return nil
	})
}

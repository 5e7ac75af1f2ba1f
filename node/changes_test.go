package node

import (
	"context"
	"runtime"
	"testing"
)

// What a reader of changes took is given back when the reader goes.
func TestReadersOfChangesAreForgotten(t *testing.T) {
	run, stop := context.WithCancel(t.Context())
	defer stop()
	n := &Node{changes: newChanges(), run: run}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for range 400 {
		ctx, cancel := context.WithCancel(run)
		ch, err := n.Changes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		for range ch { // until it is closed
		}
	}
	if more := heap() - before; more > 8<<20 {
		t.Errorf("400 readers left %d MiB behind", more>>20)
	}
}

func TestChangesEndWithTheNode(t *testing.T) {
	run, stop := context.WithCancel(t.Context())
	n := &Node{changes: newChanges(), run: run}
	ch, err := n.Changes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	for range ch {
	}
}

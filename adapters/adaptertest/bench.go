package adaptertest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters"
)

// Bench runs b.N tasks, at most parallel at once, each started, watched to its
// end and removed. It reports tasks/s. A task that doesn't end well fails it.
func Bench(b *testing.B, a adapters.Adapter, parallel int, fill func(*adapters.Task)) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	ch, err := a.Watch(ctx)
	if err != nil {
		b.Fatal(err)
	}
	var mu sync.Mutex
	waiting := map[adapters.Key]chan adapters.Status{}
	go func() {
		for st := range ch {
			if st.State == adapters.Ended {
				mu.Lock()
				if c := waiting[st.Key]; c != nil {
					c <- st
				}
				mu.Unlock()
			}
		}
	}()
	one := func() {
		t := NewTask()
		t.Resources.Memory = 64 << 20
		fill(&t)
		c := make(chan adapters.Status, 1)
		mu.Lock()
		waiting[t.Key] = c
		mu.Unlock()
		if err := a.Start(ctx, t); err != nil {
			b.Errorf("start: %v", err)
			return
		}
		select {
		case st := <-c:
			if st.ExitCode != 0 {
				b.Errorf("exit code %d: %s", st.ExitCode, st.Reason)
			}
		case <-ctx.Done():
			b.Error("no end in sight")
			return
		}
		mu.Lock()
		delete(waiting, t.Key)
		mu.Unlock()
		if err := a.Remove(ctx, t.Key); err != nil {
			b.Errorf("remove: %v", err)
		}
	}
	one() // compiles, if there is something to compile
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for range work {
				one()
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}

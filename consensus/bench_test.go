package consensus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// fsyncP50 is the median of 200 times append 4 KiB and fsync in a folder.
func fsyncP50(b *testing.B, dir string) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var took []time.Duration
	block := make([]byte, 4096)
	for range 200 {
		began := time.Now()
		f.Write(block)
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// BenchmarkPropose has callers at a follower of three voters in one process
// propose signed commands, one after the other each. The follower signs them,
// the leader and the followers check them.
func BenchmarkPropose(b *testing.B) {
	nodes := three(b, func(c *Config) { c.tune = nil })
	lead := leaderOf(b, nodes...)
	follower := nodes[1]
	if follower == lead {
		follower = nodes[0]
	}
	for _, callers := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			fsync := fsyncP50(b, b.TempDir())
			cmds := make([]pcm.Signed, b.N)
			for i := range cmds {
				_, cmds[i] = follower.command(follower.cfg.Self)
			}
			took := make([]time.Duration, b.N)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for {
						i := int(next.Add(1)) - 1
						if i >= b.N {
							return
						}
						began := time.Now()
						r, err := follower.Propose(context.Background(), cmds[i])
						if err != nil || r[0].First() != nil {
							b.Error(err, r)
							return
						}
						took[i] = time.Since(began)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(fsync.Microseconds())/1000, "fsync-p50-ms")
			b.ReportMetric(float64(runtime.NumCPU()), "cores")
		})
	}
}

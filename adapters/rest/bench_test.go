package rest

import (
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// BenchmarkJobs takes a thousand jobs that end at once through one description.
// The fake is in the same process: its work counts.
func BenchmarkJobs(b *testing.B) {
	const jobs = 1000
	for b.Loop() {
		c := newCloud(b, 1<<20)
		c.instant = true
		r := runner(b, c.settings("small.yaml"))
		var runs []*supervisor.Run
		for range jobs {
			run, _ := runOf(b, "true")
			runs = append(runs, run)
		}
		runtime.GC()
		before, began := cpuTime(b), time.Now()
		var work sync.WaitGroup
		for _, run := range runs {
			work.Go(func() {
				if exit := r.Run(b.Context(), run); exit.Outcome != pcm.OutcomeOK {
					b.Errorf("%+v", exit)
				}
			})
		}
		work.Wait()
		took := time.Since(began)
		until(b, "all is deleted", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
		b.ReportMetric(float64(c.calls.Load())/jobs, "requests/job")
		b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/jobs, "cpu-us/job")
		b.ReportMetric(jobs/took.Seconds(), "jobs/s")
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

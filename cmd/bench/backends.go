package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// A back end takes an array of tasks that do nothing, natively and through PCM.
const (
	backendWidth = 16 // tasks at once, both ways
	backendWait  = 20 * time.Minute
	busybox      = "localhost/busybox:1"
)

// backend is a server that runs the same array natively.
type backend struct {
	name   string
	how    string                                 // natively
	config string                                 // of the adapter, in the configuration of a peer
	ask    pcm.Ask                                // of each task, both ways; zero: one core
	array  func(ctx context.Context, n int) error // natively
	close  func() error
}

// backends measures what PCM adds to each back end.
func (b *bench) backends(ctx context.Context) error {
	fmt.Printf("backends: an array of `true`, %d at once, natively and through PCM in turns, medians of %d rounds\n", backendWidth, b.rounds)
	var errs []error
	for _, open := range []struct {
		name  string
		tasks int
		open  func(context.Context) (*backend, error)
	}{
		{"process", b.tasks, b.openProcess}, {"slurm", b.tasks, b.openSlurm},
		{"container", b.tasks, b.openContainer}, {"kubernetes", b.tasks, b.openKubernetes},
	} {
		if len(b.servers) > 0 && !b.servers[open.name] {
			continue
		}
		be, err := open.open(ctx)
		if errors.Is(err, server.ErrMissing) {
			fmt.Printf("  NO %s HERE, it is NOT measured: %v\n", strings.ToUpper(open.name), err)
			continue
		}
		if err == nil {
			err = b.overhead(ctx, be, open.tasks)
			if be.close != nil {
				err = errors.Join(err, be.close())
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", open.name, err))
			if ctx.Err() != nil {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// overhead runs the array both ways in turns.
func (b *bench) overhead(ctx context.Context, be *backend, n int) error {
	p, err := b.start(ctx, be.name, settings{adapters: be.config})
	if err != nil {
		return err
	}
	defer p.stop()
	if err := until(ctx, time.Minute, 50*time.Millisecond, be.name+" is offered", func() (bool, error) {
		offers, err := p.c.Offers(ctx)
		return err == nil && len(offers.Items) > 0 && offers.Items[0].Free != nil, err
	}); err != nil {
		return err
	}
	step := pcm.Step{Name: "run", Command: []string{"true"}, Resources: be.ask, TimeLimit: "5m"}
	if be.ask.CPU == "" {
		step.Resources = pcm.Ask{CPU: "1", Memory: "128MiB"}
	}
	through := func(n int) (time.Duration, error) {
		step.Count = n
		_, took, err := runJobWithin(ctx, backendWait, p, step, "")
		return took, err
	}
	natively := func(n int) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, backendWait)
		defer cancel()
		begun := time.Now()
		err := be.array(ctx, n)
		return time.Since(begun), err
	}
	// Images, connections and caches of both.
	if _, err := natively(backendWidth); err != nil {
		return err
	}
	if _, err := through(backendWidth); err != nil {
		return err
	}
	var native, pcms []time.Duration
	var busyNative, busyPCM float64
	var before, after, super, superAfter usage
	var daemon, supervisor time.Duration
	for range b.rounds {
		cpu := cpuTimes()
		took, err := natively(n)
		if err != nil {
			return fmt.Errorf("natively: %w", err)
		}
		native, busyNative = append(native, took), busyNative+cpu.busySince()
		if before, err = usageOf(p.cmd.Process.Pid); err != nil {
			return err
		}
		pid := supervisorOf(p.data)
		super, _ = usageOf(pid)
		cpu = cpuTimes()
		if took, err = through(n); err != nil {
			return fmt.Errorf("through PCM: %w", err)
		}
		pcms, busyPCM = append(pcms, took), busyPCM+cpu.busySince()
		if after, err = usageOf(p.cmd.Process.Pid); err != nil {
			return err
		}
		superAfter, _ = usageOf(pid)
		daemon += after.minus(before).cpu
		supervisor += superAfter.minus(super).cpu
	}
	most := quantile(pcms, 0.5)
	least := quantile(native, 0.5)
	target := "target < 10 %"
	if be.name == "process" {
		target = "PCM is the bottleneck, not fork and exec"
	}
	figure(fmt.Sprintf("%s: %d tasks, %s", be.name, n, be.how), fmt.Sprintf("%.1f s", least.Seconds()), fmt.Sprintf("machine busy %.0f %%", busyNative/float64(b.rounds)*100))
	figure(fmt.Sprintf("%s: %d tasks, through PCM", be.name, n), fmt.Sprintf("%.1f s", most.Seconds()), fmt.Sprintf("machine busy %.0f %%", busyPCM/float64(b.rounds)*100))
	figure("  overhead", fmt.Sprintf("%+.0f %%", (most.Seconds()/least.Seconds()-1)*100), target)
	tasks := time.Duration(n * b.rounds)
	figure("  CPU a task: daemon, supervisor", ms(daemon/tasks)+", "+ms(supervisor/tasks), "")
	figure("  memory at the end: daemon, supervisor", mib(after.rss)+", "+mib(superAfter.rss), "")
	return nil
}

// each runs f for 0 to n-1, some at once, until one fails.
func each(ctx context.Context, n int, f func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range backendWidth {
		wg.Go(func() {
			for i := range next {
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

func command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.300s", name, err, out)
	}
	return nil
}

func (b *bench) openProcess(context.Context) (*backend, error) {
	return &backend{
		name: "process", how: "fork and exec",
		config: fmt.Sprintf("  process: {sandbox: none, allow_unsandboxed: true, slots: %d, capacity: {cpu: %d}}\n  wasm: {enabled: false}\n", backendWidth, backendWidth),
		array: func(ctx context.Context, n int) error {
			return each(ctx, n, func(ctx context.Context, _ int) error { return command(ctx, nil, "true") })
		},
	}, nil
}

func (b *bench) openSlurm(ctx context.Context) (*backend, error) {
	s, err := server.StartSlurm(ctx, server.SlurmOptions{Nodes: 2})
	if err != nil {
		return nil, err
	}
	return &backend{
		name: "slurm", how: "sbatch --array",
		config: fmt.Sprintf("  process: {enabled: false}\n  wasm: {enabled: false}\n  slurm: {enabled: true, conf: %s, partitions: [main], slots: %d}\n", s.Conf, backendWidth),
		array: func(ctx context.Context, n int) error {
			dir, err := os.MkdirTemp(b.dir, "array-")
			if err != nil {
				return err
			}
			out, err := s.Command(ctx, "sbatch", "--parsable", fmt.Sprintf("--array=0-%d%%%d", n-1, backendWidth), "--cpus-per-task=1", "--mem=128M", "--time=5",
				"--chdir="+dir, "--output="+filepath.Join(dir, "%a.out"), "--error="+filepath.Join(dir, "%a.err"), "--partition=main", "--wrap=true")
			if err != nil {
				return err
			}
			return until(ctx, backendWait, 200*time.Millisecond, "the array has ended", func() (bool, error) {
				left, err := s.Command(ctx, "squeue", "--noheader", "--jobs="+strings.TrimSpace(out))
				return strings.TrimSpace(left) == "", err
			})
		},
		close: s.Close,
	}, nil
}

func (b *bench) openContainer(ctx context.Context) (*backend, error) {
	if _, err := server.Need("docker"); err != nil {
		return nil, err
	}
	e, err := server.Dockerd(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := e.LoadBusybox(ctx, busybox); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return &backend{
		name: "container", how: "docker run",
		config: fmt.Sprintf("  process: {enabled: false}\n  wasm: {enabled: false}\n  container: {enabled: true, socket: %s, default_image: %s, pull: never, slots: %d, capacity: {cpu: %d, memory: 8GiB}}\n", e.Socket, busybox, backendWidth, backendWidth),
		array: func(ctx context.Context, n int) error {
			return each(ctx, n, func(ctx context.Context, _ int) error {
				return command(ctx, []string{"DOCKER_HOST=unix://" + e.Socket}, "docker", "run", "--rm", "--network=none", "--memory=128m", "--cpus=1", busybox, "true")
			})
		},
		close: e.Close,
	}, nil
}

func (b *bench) openKubernetes(ctx context.Context) (*backend, error) {
	k, err := server.StartKubernetes(ctx)
	if err != nil {
		return nil, err
	}
	if err = k.Apply(ctx, "configs/kubernetes/rbac.yaml"); err == nil {
		_, err = k.AddNode(ctx, 0)
	}
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	jobs := 0
	return &backend{
		name: "kubernetes", how: "one Indexed Job", ask: pcm.Ask{CPU: "100m", Memory: "64MiB"}, // so that as many fit as may
		config: fmt.Sprintf("  process: {enabled: false}\n  wasm: {enabled: false}\n  kubernetes: {enabled: true, kubeconfig: %s, namespace: pcm, helper_image: %s, default_image: %s, slots: %d, capacity: {cpu: %d, memory: 8GiB}}\n",
			k.Restricted, server.HelperImage, server.HelperImage, backendWidth, backendWidth),
		array: func(ctx context.Context, n int) error {
			jobs++
			name := "native" + strconv.Itoa(jobs)
			return indexedJob(ctx, k, name, n)
		},
		close: k.Close,
	}, nil
}

// indexedJob runs a Job in the default namespace to its end, and deletes it.
func indexedJob(ctx context.Context, k *server.Kubernetes, name string, n int) error {
	ask := map[string]any{"cpu": "100m", "memory": "64Mi"}
	pod := map[string]any{
		"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
		"containers": []any{map[string]any{
			"name": "run", "image": server.HelperImage, "imagePullPolicy": "Never", "command": []string{"true"},
			"resources": map[string]any{"requests": ask, "limits": ask},
		}},
	}
	if err := k.Create(ctx, map[string]any{
		"apiVersion": "batch/v1", "kind": "Job", "metadata": map[string]any{"name": name, "namespace": "default"},
		"spec": map[string]any{
			"completions": n, "parallelism": min(n, backendWidth), "completionMode": "Indexed", "backoffLimit": 0,
			"template": map[string]any{"spec": pod},
		},
	}); err != nil {
		return err
	}
	path := "/apis/batch/v1/namespaces/default/jobs/" + name
	err := until(ctx, backendWait, 200*time.Millisecond, "the Job has ended", func() (bool, error) {
		var job struct {
			Status struct{ Succeeded, Failed int }
		}
		err := k.Do(ctx, http.MethodGet, path, nil, &job)
		if err == nil && job.Status.Failed > 0 {
			err = fmt.Errorf("%d pods of Job %s failed", job.Status.Failed, name)
		}
		return job.Status.Succeeded == n, err
	})
	return cmp.Or(err, k.Do(ctx, http.MethodDelete, path+"?propagationPolicy=Background", nil, nil))
}

// cpuTime is the machine's: busy, and all.
type cpuTime struct{ busy, all int64 }

// cpuTimes reads /proc/stat; zeros where there is none.
func cpuTimes() (c cpuTime) {
	data, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(first) {
		n, _ := strconv.ParseInt(f, 10, 64) // the first is a name
		if c.all += n; i != 4 && i != 5 {   // idle, and idle with a disk at work
			c.busy += n
		}
	}
	return c
}

// busySince is the share of all cores that was in use since.
func (c cpuTime) busySince() float64 {
	now := cpuTimes()
	return float64(now.busy-c.busy) / float64(max(now.all-c.all, 1))
}

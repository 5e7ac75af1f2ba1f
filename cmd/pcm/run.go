package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// runFlags are the flags of 'pcm run': a spec of one step.
type runFlags struct {
	name, cpu, memory, class, adapter, module string
	timeLimit, budget, takeover, strategy     string
	deadline, payAfter                        string
	count, retries                            int
	gpu                                       int64
	disk, accelerator                         string
	software                                  []string
	labels, inputs, outputs, env              []string
	detach                                    bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG…]",
		Short: "Run a command somewhere in the mesh, and wait for it",
		Long: `Runs a command, or with --module a WebAssembly module, as a job of one step:
shows what it writes, waits for its end and exits with its code. The command is
not passed through a shell. Ctrl-C cancels the job; -d lets it run. What the
tasks leave as --output is fetched by 'pcm job get'.

  pcm run -- echo hello
  pcm run --count 4 -- sh -c 'echo task $PCM_TASK_INDEX of $PCM_TASK_COUNT'
  pcm run --input ./data --output result.txt -- sh -c 'wc data/* > result.txt'
  pcm run --module hello.wasm -- some arguments`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.ownClasses(); err != nil {
				return err
			}
			spec, err := f.spec(args)
			if err != nil {
				return err
			}
			cwd, err := os.Getwd()
			if err != nil {
				return pcm.Errorf(pcm.Invalid, "the current folder can't be found: %w", err)
			}
			job, err := a.submit(cmd.Context(), api.Submission{ID: pcm.NewJobID(), Spec: spec, Base: cwd}, !f.detach, true)
			if err != nil || f.detach {
				return err
			}
			if len(f.outputs) > 0 && job.Counts.Done+job.Counts.Failed > 0 {
				a.hint("outputs: %s job get %s", a.self(), pcm.Short(job.ID))
			}
			return a.verdict(cmd.Context(), job, true)
		},
	}
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 && f.module == "" {
			return fmt.Errorf("pcm run needs a command after --, like: pcm run -- echo hello")
		}
		return nil
	}
	fl := c.Flags()
	fl.SetInterspersed(false)
	fl.StringVar(&f.name, "name", "", "name of the job (default: the command's)")
	fl.IntVar(&f.count, "count", 1, "how many tasks; each learns its place from PCM_TASK_INDEX and PCM_TASK_COUNT")
	fl.StringVar(&f.cpu, "cpu", "", "cores for each task: 2, 0.5 or 500m (default 100m)")
	fl.StringVar(&f.memory, "memory", "", "memory for each task: 64MiB, 2GiB (default 64MiB)")
	fl.Int64Var(&f.gpu, "gpu", 0, "accelerators for each task")
	fl.StringVar(&f.disk, "disk", "", "disk space for each task: 10GiB; only on pools that state theirs")
	fl.StringVar(&f.accelerator, "accelerator", "", "what each accelerator has to be, like a100.80g or 'fp16 >= 300 TOPS'; 'pcm class list' shows names")
	fl.StringArrayVar(&f.software, "software", nil, "what has to be installed, like python or 'cuda>=12'; may be repeated")
	fl.StringVar(&f.class, "class", "", "resource class, like cpu.small")
	fl.StringVar(&f.adapter, "adapter", "", "only on pools of this adapter, like process or wasm")
	fl.StringArrayVar(&f.labels, "label", nil, "only on pools with this label, `KEY=VALUE`; may be repeated")
	fl.StringArrayVar(&f.inputs, "input", nil, "file or folder that the tasks read, `SOURCE[:TARGET]`; may be repeated")
	fl.StringArrayVar(&f.outputs, "output", nil, "file or folder, by its `PATH` in the task's working folder, that 'pcm job get' fetches; may be repeated")
	fl.StringArrayVar(&f.env, "env", nil, "variable for the tasks, `NAME=VALUE`; may be repeated")
	fl.StringVar(&f.timeLimit, "time-limit", "", "longest run of one attempt: 90s, 10m, 2h (default 1h)")
	fl.StringVar(&f.deadline, "deadline", "", "longest time for the whole job, waiting included")
	fl.IntVar(&f.retries, "retries", 0, "how often a failed task is run again")
	fl.StringVar(&f.budget, "budget", "", "most that the job may cost: 5 or '0.25 credit'")
	fl.StringVar(&f.payAfter, "pay-after", "", "pay this long after the job's end, and not at once, so that you can 'pcm trade dispute' what came back: 10m, 24h")
	fl.StringVar(&f.takeover, "takeover", "", "who may drive the job when this peer is gone: account (default), any or none")
	fl.StringVar(&f.strategy, "strategy", "", "how to choose among sites: cheapest (default) or spread")
	fl.StringVar(&f.module, "module", "", "WebAssembly module `FILE` (WASI) to run instead of a command")
	fl.BoolVarP(&f.detach, "detach", "d", false, "print the job's ID and return at once")
	return c
}

// spec makes the job that the flags describe, checked.
func (f runFlags) spec(args []string) (pcm.Spec, error) {
	labels, err := parseLabels(f.labels)
	if err != nil {
		return pcm.Spec{}, err
	}
	step := pcm.Step{
		Name: "run", Count: f.count, Class: f.class, Adapter: f.adapter, Labels: labels, Outputs: f.outputs,
		Resources: pcm.Ask{CPU: f.cpu, Memory: f.memory, GPU: f.gpu, Disk: f.disk, Accelerator: f.accelerator, Software: f.software},
		TimeLimit: pcm.Duration(f.timeLimit), Retries: f.retries,
	}
	name := f.name
	if f.module != "" {
		step.Module, step.Args = f.module, args
		name = or(name, strings.TrimSuffix(filepath.Base(f.module), ".wasm"))
	} else {
		step.Command = args
		name = or(name, filepath.Base(args[0]))
	}
	for _, in := range f.inputs {
		source, target, _ := strings.Cut(in, ":")
		step.Inputs = append(step.Inputs, pcm.Input{Source: source, Target: target})
	}
	for _, e := range f.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			return pcm.Spec{}, pcm.Errorf(pcm.Invalid, "--env %s is not of the form NAME=VALUE", e)
		}
		if step.Env == nil {
			step.Env = map[string]string{}
		}
		step.Env[k] = v
	}
	if f.count < 1 {
		return pcm.Spec{}, pcm.Errorf(pcm.Invalid, "--count %d is out of range: 1 to %d", f.count, pcm.MaxTasks)
	}
	s := pcm.Spec{
		Name: name, Budget: f.budget, Deadline: pcm.Duration(f.deadline), PayAfter: pcm.Duration(f.payAfter), Takeover: pcm.Takeover(f.takeover), Strategy: f.strategy,
		Steps: []pcm.Step{step},
	}
	return s, specFaults(s.Normalize())
}

// specFaults words the faults of a spec made of flags; nil if there are none.
func specFaults(faults []error) error {
	var lines []string
	for _, f := range faults {
		lines = append(lines, strings.TrimPrefix(f.Error(), "steps[0]."))
	}
	if len(lines) == 0 {
		return nil
	}
	return pcm.Errorf(pcm.Invalid, "%s", strings.Join(lines, "; "))
}

// submit submits a job. With wait it shows, if follow is set, what the tasks
// write, and returns the job as it ended; else it prints the job's ID.
func (a *app) submit(ctx context.Context, s api.Submission, wait, follow bool) (api.Job, error) {
	c, err := a.client()
	if err != nil {
		return api.Job{}, err
	}
	quiet := a.sayWhyNot(ctx, c.CellHealth)
	job, err := c.Submit(ctx, s)
	quiet()
	if err != nil {
		return job, err
	}
	if !wait {
		if err := a.print(job, func(t *table) { t.text("%s", job.ID) }); err != nil {
			return job, err
		}
		id := pcm.Short(job.ID)
		a.hint("Next: %s job describe %s, %s job logs -f %s, %s job get %s", a.self(), id, a.self(), id, a.self(), id)
		return job, nil
	}
	ctx, stop := a.cancelOnSignal(ctx, c, job.ID)
	defer stop()
	if follow && a.human() {
		return a.follow(ctx, c, job)
	}
	return a.await(ctx, c, job)
}

// patience is how long a person waits without a word.
const patience = 5 * time.Second

// sayWhyNot tells a person why the cell doesn't take in what was sent to it, once that
// takes long. The returned function ends that.
func (a *app) sayWhyNot(ctx context.Context, health func(context.Context) (api.CellHealth, error)) (quiet func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-time.After(patience):
		case <-ctx.Done():
			return
		}
		h, err := health(ctx)
		switch {
		case ctx.Err() != nil:
		case err == nil && h.MaxVoters == 0: // nobody leads
			fmt.Fprintf(a.errOut, "pcm: still waiting: %s; '%s cell members' shows who is missing\n", plain(h.Plan), a.self())
		default:
			fmt.Fprintf(a.errOut, "pcm: still waiting for the cell to take the job in; '%s doctor' looks at this node\n", a.self())
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// cancelOnSignal cancels the job at the first SIGINT or SIGTERM; one that
// comes later ends the program at once, and the job may be left as it is.
func (a *app) cancelOnSignal(ctx context.Context, c *api.Client, id pcm.JobID) (context.Context, func()) {
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-ch:
		case <-done:
			return
		}
		fmt.Fprintf(a.errOut, "\npcm: cancelling %s; once more to leave it as it is\n", pcm.Short(id))
		go func() {
			cctx, cancel := context.WithTimeout(ctx, viewTimeout)
			defer cancel()
			if _, err := c.Cancel(cctx, string(id), "cancelled from the terminal"); err != nil && pcm.ErrorCode(err) != pcm.Conflict {
				fmt.Fprintf(a.errOut, "pcm: can't cancel %s: %s\n", pcm.Short(id), err)
			}
		}()
		// Who ends a program and its whole group, as timeout(1) does, sends two at once:
		// that is not a second thought.
		soon := time.After(time.Second)
		for {
			select {
			case <-ch:
				select {
				case <-soon:
					fmt.Fprintf(a.errOut, "pcm: %s may go on; 'pcm job stop %s' ends it\n", pcm.Short(id), pcm.Short(id))
					os.Exit(130)
				default:
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
	}
}

// quietWait is how long a job may wait for a place before its reason is shown.
const quietWait = 2 * time.Second

// await waits for the job's end and tells why it waits meanwhile.
func (a *app) await(ctx context.Context, c *api.Client, job api.Job) (api.Job, error) {
	begun := time.Now()
	told := ""
	return c.WaitJob(ctx, job.ID, func(j api.Job) bool {
		if time.Since(begun) > quietWait {
			told = a.tellWaiting(j, told)
		}
		return api.Ended(j)
	})
}

// tellWaiting tells why an open job waits, unless that was told last; the first
// time it tells how to end the wait as well. It returns what was told last.
func (a *app) tellWaiting(j api.Job, told string) string {
	if api.Ended(j) || j.Waiting == "" || j.Waiting == told {
		return told
	}
	a.hint("pcm: %s waits: %s", pcm.Short(j.ID), plain(j.Waiting))
	if told == "" {
		a.hint("pcm: Ctrl-C cancels; a deadline ('pcm run --deadline', or deadline in the spec) limits the wait")
	}
	return j.Waiting
}

// verdict is how the program ends after waiting for a job. With its own code the
// program takes over that of a job's only task.
func (a *app) verdict(ctx context.Context, job api.Job, own bool) error {
	if !a.human() {
		if err := a.print(job, nil); err != nil {
			return err
		}
	}
	if job.State == pcm.JobDone {
		return nil
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	failed, err := c.Tasks(ctx, string(job.ID), api.Query{State: string(pcm.TaskFailed), Limit: 4})
	if err != nil {
		return err
	}
	a.hint("pcm: %s %s%s", pcm.Short(job.ID), job.State, prefixed(": ", job.Reason))
	for i, t := range failed.Items {
		if i == 3 {
			a.hint("pcm:   … see 'pcm job describe %s'", pcm.Short(job.ID))
			break
		}
		a.hint("pcm:   task %s/%d: %s", t.Step, t.Index, taskEnd(t))
	}
	if own && job.Counts.Total == 1 && len(failed.Items) == 1 {
		if code := failed.Items[0].ExitCode; code != nil && *code > 0 && *code < 256 {
			return exitStatus(*code)
		}
	}
	return exitStatus(exitFailed)
}

// taskEnd says how a task ended, for people.
func taskEnd(t api.Task) string {
	s := string(t.Outcome)
	if t.ExitCode != nil && *t.ExitCode != 0 {
		s = fmt.Sprintf("exit code %d", *t.ExitCode)
		if t.Outcome != pcm.OutcomeFailed && t.Outcome != "" {
			s = fmt.Sprintf("%s (exit code %d)", t.Outcome, *t.ExitCode)
		}
	}
	if t.Reason != "" && t.Reason != s {
		s = or(s, string(t.State)) + ": " + plain(t.Reason)
	}
	return or(s, string(t.State))
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + plain(s)
}

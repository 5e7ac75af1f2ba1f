package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/configs"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/placement"
)

func (a *app) jobCommand() *cobra.Command {
	c := &cobra.Command{Use: "job", Aliases: []string{"jobs"}, Short: "Run, follow and stop jobs"}
	c.RunE = a.group(c)
	c.AddCommand(a.jobRunCommand(), a.jobValidateCommand(), a.jobListCommand(), a.jobDescribeCommand(),
		a.jobLogsCommand(), a.jobGetCommand(), a.jobStopCommand(), a.jobScaleCommand(), a.jobSuspendCommand(), a.jobResumeCommand(), a.jobExplainCommand(), a.jobSchemaCommand())
	return c
}

// readSpec reads a job's spec from a file, or from standard input if that is "-".
// base is the folder that its relative paths start from.
func (a *app) readSpec(file string) (spec pcm.Spec, base string, err error) {
	raw, base, err := a.readSpecFile(file)
	if err != nil {
		return spec, "", err
	}
	spec, err = pcm.ParseSpec(raw, file)
	return spec, base, err
}

func (a *app) readSpecFile(file string) (raw []byte, base string, err error) {
	if err := a.ownClasses(); err != nil {
		return nil, "", err
	}
	var r io.Reader = a.in
	base, err = os.Getwd()
	if file != "-" {
		f, oerr := os.Open(file)
		if oerr != nil {
			return nil, "", pcm.Errorf(pcm.Invalid, "can't read the spec: %w", oerr)
		}
		defer f.Close()
		r = f
		base, err = filepath.Abs(filepath.Dir(file))
	}
	if err != nil {
		return nil, "", pcm.Errorf(pcm.Invalid, "the current folder can't be found: %w", err)
	}
	raw, err = io.ReadAll(io.LimitReader(r, pcm.MaxYAML+1))
	if err != nil {
		return nil, "", pcm.Errorf(pcm.Invalid, "can't read the spec: %w", err)
	}
	if len(raw) > pcm.MaxYAML {
		return nil, "", pcm.Errorf(pcm.TooLarge, "%s is over the bound of %s for a spec: name large data as inputs instead of writing it there", file, pcm.Bytes(pcm.MaxYAML))
	}
	return raw, base, nil
}

func (a *app) jobRunCommand() *cobra.Command {
	var wait, follow bool
	c := &cobra.Command{
		Use: "run FILE", Short: "Submit the job of a spec file (YAML or JSON; - for standard input)", Args: exactly(1, "a FILE with the job's spec"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, base, err := a.readSpec(args[0])
			if err != nil {
				return err
			}
			job, err := a.submit(cmd.Context(), api.Submission{ID: pcm.NewJobID(), Spec: spec, Base: base}, wait || follow, follow)
			if err != nil || !(wait || follow) {
				return err
			}
			if a.human() && job.State == pcm.JobDone {
				if _, err := fmt.Fprintln(a.out, drawDone(job)); err != nil {
					return written(err)
				}
			}
			return a.verdict(cmd.Context(), job, false)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait for the job's end")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "wait, and show what the tasks write")
	return c
}

func (a *app) jobValidateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE", Short: "Check a spec file without submitting it; needs no node", Args: exactly(1, "a FILE with the job's spec"),
		Long: `Checks a spec file without submitting it, and names line and field of every
fault: exit code 2. Where only inputs or modules are missing that it names, the
exit code is 3.`,
		RunE: func(_ *cobra.Command, args []string) error {
			raw, base, err := a.readSpecFile(args[0])
			if err != nil {
				return err
			}
			spec, err := checkSpec(raw, args[0], base)
			if err != nil {
				return err
			}
			return a.print(spec, func(t *table) {
				t.text("%s is good: job %s, %s, %s.", args[0], spec.Name, plural(len(spec.Steps), "step"), plural(spec.Tasks(), "task"))
			})
		},
	}
}

// checkSpec is [pcm.ParseSpec], and checks what can be checked on this machine as
// well: the strategy's name, and (with code NotFound) that the sources are there.
func checkSpec(raw []byte, file, base string) (pcm.Spec, error) {
	spec, err := pcm.ParseSpec(raw, file)
	if err != nil {
		return spec, err
	}
	var again pcm.Spec
	at, err := pcm.DecodeYAML(raw, file, &again)
	if err != nil {
		return spec, err
	}
	fault := func(field, message string) pcm.FileFault {
		p := at.Of(field)
		return pcm.FileFault{Line: p.Line, Column: p.Column, Field: field, Message: message}
	}
	if _, err := placement.FindStrategy(spec.Strategy); err != nil {
		return spec, &pcm.FileError{File: file, Faults: []pcm.FileFault{fault("strategy", err.Error())}}
	}
	missing := &pcm.FileError{File: file}
	look := func(field, source string) {
		if !filepath.IsAbs(source) {
			source = filepath.Join(base, source)
		}
		if _, err := os.Stat(source); err != nil {
			missing.Faults = append(missing.Faults, fault(field, err.Error()))
		}
	}
	for i, st := range spec.Steps {
		if st.Module != "" && st.ModuleAt == "" {
			look(fmt.Sprintf("steps[%d].module", i), st.Module)
		}
		for j, in := range st.Inputs {
			if in.Digest == "" {
				look(fmt.Sprintf("steps[%d].inputs[%d].source", i, j), in.Source)
			}
		}
	}
	if len(missing.Faults) > 0 {
		return spec, pcm.Errorf(pcm.NotFound, "%s", missing.Error())
	}
	return spec, nil
}

func (a *app) jobSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of a spec file, for editors", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.out.Write(configs.JobSchema)
			return written(err)
		},
	}
}

func (a *app) jobListCommand() *cobra.Command {
	var q api.Query
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List jobs, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFlag("--state", q.State, jobStates); err != nil {
				return err
			}
			return view(a, func(ctx context.Context, c *api.Client) (api.List[api.Job], error) { return c.Jobs(ctx, q) }, func(t *table, l api.List[api.Job]) {
				if len(l.Items) == 0 {
					a.hint("No jobs. Next: pcm run -- echo hello")
				}
				drawJobs(t, l)
			})(cmd, args)
		},
	}
	c.Flags().IntVar(&q.Limit, "limit", 50, "most jobs to list; 0: all")
	c.Flags().StringVar(&q.State, "state", "", "only jobs that are open, done, failed or cancelled")
	return c
}

func drawJobs(t *table, l api.List[api.Job]) {
	head := []string{"JOB", "NAME", "STATE", "TASKS", "PAID", "UNIT", "AGE", "REASON"}
	if t.wide {
		head = []string{"JOB", "NAME", "STATE", "TASKS", "PAID", "UNIT", "AGE", "HELD", "ACCOUNT", "SUBMITTER", "DRIVER", "REASON"}
	}
	t.row(head...)
	for _, j := range l.Items {
		row := []string{id(t, j.ID), j.Name, string(j.State), fmt.Sprintf("%d/%d", j.Counts.Done, j.Counts.Total), j.Paid, j.Unit, t.age(j.SubmittedAt)}
		if t.wide {
			row = append(row, j.Held, string(j.Account), string(j.Submitter), string(j.Driver))
		}
		t.row(append(row, or(j.Reason, j.Waiting))...)
	}
}

func (a *app) jobDescribeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "describe JOB", Short: "Show a job with its tasks, attempts and costs", Args: exactly(1, "a JOB, as 'pcm job list' shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), viewTimeout)
			defer cancel()
			job, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			if !a.human() {
				return a.print(job, nil)
			}
			tasks, err := c.Tasks(ctx, string(job.ID), api.Query{})
			if err != nil {
				return err
			}
			trades, err := c.Trades(ctx, api.Query{Job: job.ID})
			if err != nil {
				return err
			}
			live := lookAt(ctx, c, tasks.Items)
			return a.print(job, func(t *table) { drawJob(t, job, tasks.Items, trades, live) })
		},
	}
}

// maxDescribed bounds the tasks that 'job describe' shows; a wide table has all.
const maxDescribed = 50

// lookTime bounds asking sellers how tasks are; maxLooked how many tasks.
const (
	lookTime  = 3 * time.Second
	maxLooked = maxDescribed
)

// lookAt asks the peers that run tasks how these are. Those that don't answer in
// time are left out: the ledger knows enough.
func lookAt(ctx context.Context, c *api.Client, tasks []api.Task) map[string]api.Live {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var mu sync.Mutex
	live := map[string]api.Live{}
	var g errgroup.Group
	g.SetLimit(fetchers)
	asked := 0
	for _, t := range tasks {
		if t.State != pcm.TaskPlaced || asked == maxLooked {
			continue
		}
		asked++
		g.Go(func() error {
			if v, err := c.Look(ctx, string(t.Job), t.Step, t.Index); err == nil {
				mu.Lock()
				defer mu.Unlock()
				live[t.ID] = v
			}
			return nil
		})
	}
	g.Wait() // none fails
	return live
}

// stateNow is a task's state, with what its seller says of it.
func stateNow(k api.Task, v api.Live) (state, reason string) {
	state, reason = string(k.State), k.Reason
	if v.State == "" {
		return state + prefixed(", ", k.BackEnd), reason
	}
	state = v.State
	if v.Native != "" && v.Native != v.State {
		state += " (" + v.Native + ")"
	}
	if v.Health != "" && v.State == "running" {
		state = v.Health
	}
	return state, or(reason, or(v.Reason, prefixed("health check: ", v.Check)))
}

// drawCost says what a job has cost, and what of that is paid. With pay_after a cost is known
// before anything is paid, and the trades hold it.
func drawCost(j api.Job) string {
	budget := prefixed(", budget ", j.Budget)
	if !j.Settled && !j.PayAt.IsZero() {
		return fmt.Sprintf("%s %s%s; what of it isn't paid yet is paid after %s UTC, but for what is disputed: 'pcm trade dispute TRADE'", j.Paid, j.Unit, budget, j.PayAt.UTC().Format(time.DateTime))
	}
	settled := "not yet settled"
	if j.Settled {
		settled = "settled"
	}
	return fmt.Sprintf("%s paid, %s held, in %s%s; %s", j.Paid, j.Held, j.Unit, budget, settled)
}

// drawDone is the line that ends a job that was waited for.
func drawDone(j api.Job) string {
	if !j.Settled && !j.PayAt.IsZero() {
		return fmt.Sprintf("%s done: %s, to be paid after %s UTC: %s %s", j.ID, plural(j.Counts.Done, "task"), j.PayAt.UTC().Format(time.DateTime), j.Paid, j.Unit)
	}
	return fmt.Sprintf("%s done: %s, paid %s %s", j.ID, plural(j.Counts.Done, "task"), j.Paid, j.Unit)
}

func drawJob(t *table, j api.Job, tasks []api.Task, trades api.List[api.Trade], live map[string]api.Live) {
	t.pair("Job", "%s", j.ID)
	t.pair("Name", "%s", j.Name)
	t.pair("State", "%s%s", j.State, prefixed(": ", j.Reason))
	t.pair("Waiting", "%s", j.Waiting)
	t.pair("Account", "%s", j.Account)
	t.pair("Submitted", "%s ago, through %s", t.age(j.SubmittedAt), id(t, j.Submitter))
	if !j.EndedAt.IsZero() {
		t.pair("Took", "%s", j.EndedAt.Sub(j.SubmittedAt).Round(time.Millisecond))
	}
	t.pair("Driver", "%s, term %d; takeover by %s", id(t, j.Driver), j.DriverTerm, j.Takeover)
	t.pair("Cost", "%s", drawCost(j))
	n := j.Counts
	t.pair("Tasks", "%d: %d waiting, %d placed, %d done, %d failed, %d cancelled", n.Total, n.Waiting, n.Placed, n.Done, n.Failed, n.Cancelled)
	for _, s := range j.Services {
		port := ""
		if s.Port > 0 {
			port = fmt.Sprintf(", port %d", s.Port)
		}
		t.pair("Service", "%s: scaled to %d of %d, %d placed%s", s.Step, s.Scale, s.Most, s.Placed, port)
	}
	t.text("")
	t.row("TASK", "STATE", "TRY", "SELLER", "EXIT", "TIME", "CPU", "MEMORY", "TRADE", "REASON")
	left := 0
	for i, k := range tasks {
		if i >= maxDescribed && !t.wide {
			left++
			continue
		}
		exit, wall, cpu, mem := "-", "-", "-", "-"
		if k.ExitCode != nil {
			exit = strconv.Itoa(*k.ExitCode)
		}
		if u := k.Usage; u != nil {
			wall, cpu, mem = u.Wall().String(), (time.Duration(u.CPUMS) * time.Millisecond).String(), u.MaxMemory.String()
		}
		trade := "-"
		if k.Trade != "" {
			trade = id(t, k.Trade)
		}
		seller := "-"
		if k.Seller != "" {
			seller = or(k.SellerName, pcm.Short(k.Seller))
		}
		state, reason := stateNow(k, live[k.ID])
		t.row(fmt.Sprintf("%s/%d", k.Step, k.Index), state, strconv.Itoa(k.Attempt), seller, exit, wall, cpu, mem, trade, reason)
		for _, h := range k.History {
			t.row("", "", "", "", "", "", "", "", "", "earlier: "+h)
		}
	}
	if left > 0 {
		t.text("… and %s more; -o wide shows all", plural(left, "task"))
	}
	if len(trades.Items) > 0 {
		t.text("")
		drawTrades(t, trades)
	}
}

func (a *app) jobStopCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "stop JOB", Aliases: []string{"cancel"}, Short: "Cancel a job; its running tasks are stopped", Args: exactly(1, "a JOB, as 'pcm job list' shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.Job, error) { return c.Cancel(ctx, args[0], reason) }, func(t *table, j api.Job) {
				if j.State == pcm.JobOpen { // until its sellers have stopped
					t.text("%s is being cancelled.", j.ID)
					return
				}
				t.text("%s is %s.", j.ID, j.State)
			})(cmd, args)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who look at the job later")
	return c
}

func (a *app) jobExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain JOB|FILE", Short: "Say why tasks are where they are, or where a spec file's would run", Args: exactly(1, "a JOB or a FILE with a spec"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var job api.Job
			get := func(ctx context.Context, c *api.Client) (e api.Explanation, err error) {
				job, err = c.Job(ctx, args[0])
				if pcm.ErrorCode(err) == pcm.NotFound {
					return e, pcm.Errorf(pcm.NotFound, "there is no job and no file %s; see '%s job list'", args[0], a.self())
				}
				if err != nil {
					return e, err
				}
				return c.Explain(ctx, string(job.ID))
			}
			if info, err := os.Stat(args[0]); args[0] == "-" || (err == nil && !info.IsDir()) {
				spec, base, err := a.readSpec(args[0])
				if err != nil {
					return err
				}
				get = func(ctx context.Context, c *api.Client) (api.Explanation, error) {
					return c.ExplainSpec(ctx, api.Submission{Spec: spec, Base: base})
				}
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return pcm.Errorf(pcm.Invalid, "can't read %s: %w", args[0], err)
			}
			return view(a, get, func(t *table, e api.Explanation) {
				if job.ID != "" && api.Ended(job) {
					t.text("%s has ended (%s): '%s job describe %s' says where its tasks ran.", job.ID, job.State, a.self(), pcm.Short(job.ID))
					t.text("Its tasks would go here now:")
				}
				drawExplanation(t, e)
			})(cmd, args)
		},
	}
}

func drawExplanation(t *table, e api.Explanation) {
	for i, s := range e.Steps {
		if i > 0 {
			t.text("")
		}
		t.text("%s: needs %s; strategy %s", s.Step, s.Shape, s.Strategy)
		if s.Summary != "" {
			t.text("  %s", plain(s.Summary))
		}
		head := []string{"  SITE", "POOL", "FITS", "ROOM", "AT MOST"}
		if t.wide {
			head = append(head, "SCORE")
		}
		t.row(append(head, "WHY NOT")...)
		for _, c := range s.Candidates {
			fits, why := "yes", c.Reason
			if !c.OK {
				fits, why = "no", strings.Trim(c.Filter+": "+c.Reason, ": ")
			}
			row := []string{"  " + or(c.Name, pcm.Short(c.Peer)), string(c.Pool), fits, strconv.Itoa(c.Room), or(c.Cost, "-")}
			if t.wide {
				row = append(row, strconv.FormatFloat(c.Score, 'f', 3, 64))
			}
			t.row(append(row, why)...)
		}
	}
}

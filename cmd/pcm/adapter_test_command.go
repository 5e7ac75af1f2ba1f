package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/script"
	"github.com/jointcloud/pcm/adapters/plugin"
)

// adapterTrial is what a plug-in's author says of it to have it tested: the file of
// 'pcm adapter test --config'.
type adapterTrial struct {
	Name        string            `json:"name"`
	Command     []string          `json:"command"` // a relative program is looked for beside the file
	User        string            `json:"user"`
	Settings    map[string]string `json:"settings"`
	Secrets     map[string]string `json:"secrets"`
	Unsupported map[string]string `json:"unsupported"` // by capability: why
	Env         []string          `json:"env"`         // names of variables that the back end adds; X*: all that begin with X
	Image       string            `json:"image"`       // one whose /image.txt says "of the image", without its tag
	GPUs        int64             `json:"gpus"`        // that a task may ask for
	Missing     string            `json:"missing"`     // a program that isn't there
	Task        string            `json:"task"`        // a small program that runs the steps of tasks in place of this one; looked for as command is
	Subject     string            `json:"subject"`     // what PCM's own matrix of adapters calls it, where one is kept
	Pool        string            `json:"pool"`        // that all tests use; empty: as the plug-in likes
	Patience    string            `json:"patience"`    // how long what must happen is waited for
	Pace        string            `json:"pace"`        // how long it takes until something shows
	Many        int               `json:"many"`        // how many tasks are many
	Parallel    int               `json:"parallel"`    // tests at once
}

// trialReport is what the suite found.
type trialReport struct {
	Passed      int                   `json:"passed"`
	Unsupported int                   `json:"unsupported"`
	Failed      int                   `json:"failed"`
	Skipped     int                   `json:"not_run"`
	Findings    []adaptertest.Finding `json:"findings"`
}

func (a *app) adapterTestCommand() *cobra.Command {
	var config, run string
	var verbose bool
	c := &cobra.Command{
		Use: "test [flags] [-- COMMAND ARG…]", Short: "Test a plug-in by the conformance suite that all adapters pass",
		Long: `Starts a plug-in as a node would and runs the conformance suite of adapters against it:
what it does with tasks, and what becomes of them when plug-in or supervisor hang or
are killed. Needs no node. The tasks run this program, which they have as an input.

COMMAND is the plug-in's, or that of the file that --config names:

  command: [./my-adapter, --verbose]
  settings: {endpoint: http://127.0.0.1:8080}
  secrets: {token: env:TOKEN}
  missing: no-such-program   # a program that the back end doesn't have
  task: ./task               # a smaller program for tasks: adapters/adaptertest/task of PCM's source
  pace: 400ms                # how long it takes until something shows
  unsupported:               # by capability: why not
    images: it runs programs of its own machines

What isn't declared as unsupported must work. The capabilities are:

` + capabilityLines() + `

The exit code is 3 if a test failed. WHY is the first line that a failed test said;
--verbose shows all of them.`,
		Example: `  pcm adapter test --config adapter-test.yaml
  pcm adapter test --config adapter-test.yaml --run 'logs|stop' -o json
  pcm adapter test -- ./my-adapter --verbose`,
		RunE: func(cmd *cobra.Command, args []string) error {
			trial, err := readTrial(config, args)
			if err != nil {
				return err
			}
			if _, err := regexp.Compile(run); err != nil {
				return pcm.Errorf(pcm.Invalid, "--run %q is not a regular expression: %w", run, err)
			}
			report, err := a.try(cmd.Context(), trial, run, verbose)
			if err != nil {
				return err
			}
			err = a.print(report, func(t *table) {
				t.row("CAPABILITY", "RESULT", "WHY")
				for _, f := range report.Findings {
					t.row(f.Capability, string(f.Result), f.Reason)
				}
			})
			if err != nil {
				return err
			}
			a.hint("%d passed, %d failed, %d unsupported, %d not run", report.Passed, report.Failed, report.Unsupported, report.Skipped)
			if report.Failed > 0 {
				if !verbose {
					a.hint("--verbose shows all that the tests print; --run chooses among them")
				}
				return exitStatus(pcm.Refused.ExitCode())
			}
			return nil
		},
	}
	c.Flags().StringVar(&config, "config", "", "file that says what is tested, and how")
	c.Flags().StringVar(&run, "run", "", "only capabilities that match this regular expression")
	c.Flags().BoolVar(&verbose, "verbose", false, "show all that the tests print, as they do")
	return c
}

// readTrial reads the file, if there is one; args are the plug-in's command.
func readTrial(file string, args []string) (adapterTrial, error) {
	var t adapterTrial
	dir := "."
	if file != "" {
		raw, err := readBounded(file)
		if err != nil {
			return t, pcm.Errorf(pcm.Invalid, "can't read what is to be tested: %w", err)
		}
		if _, err := pcm.DecodeYAML(raw, file, &t); err != nil {
			return t, err
		}
		dir = filepath.Dir(file)
	}
	if len(args) > 0 {
		t.Command, dir = args, "."
	}
	if len(t.Command) == 0 {
		return t, pcm.Errorf(pcm.Invalid, "no plug-in to test: give its command after --, or in the file that --config names")
	}
	if t.Name == "" {
		t.Name = "plugin"
	}
	program := t.Command[0]
	if !strings.Contains(program, "/") {
		found, err := exec.LookPath(program)
		if err != nil {
			return t, pcm.Errorf(pcm.NotFound, "there is no program %q in PATH; write ./%s for one beside the file", program, program)
		}
		program = found
	} else if !filepath.IsAbs(program) {
		program = filepath.Join(dir, program)
	}
	program, err := filepath.Abs(program)
	if err != nil {
		return t, pcm.Errorf(pcm.Invalid, "command %q: %w", t.Command[0], err)
	}
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		return t, pcm.Errorf(pcm.NotFound, "there is no program %s", program)
	}
	t.Command = append([]string{program}, t.Command[1:]...)
	if t.Task != "" {
		if !filepath.IsAbs(t.Task) {
			t.Task = filepath.Join(dir, t.Task)
		}
		if info, err := os.Stat(t.Task); err != nil || !info.Mode().IsRegular() {
			return t, pcm.Errorf(pcm.NotFound, "task: there is no program %s", t.Task)
		}
		if t.Task, err = filepath.Abs(t.Task); err != nil {
			return t, pcm.Errorf(pcm.Invalid, "task %q: %w", t.Task, err)
		}
	}
	for _, d := range []string{t.Patience, t.Pace} {
		if _, err := time.ParseDuration(d); d != "" && err != nil {
			return t, pcm.Errorf(pcm.Invalid, "%q is not a duration like 400ms or 2m", d)
		}
	}
	c, err := t.plugin("/")
	if err == nil {
		err = c.Validate()
	}
	return t, err
}

func (t adapterTrial) plugin(dir string) (plugin.Config, error) {
	return Plugin{Name: t.Name, Command: t.Command, User: t.User, Settings: t.Settings, Secrets: t.Secrets}.config(dir, "i-test", version)
}

// maxSuiteOutput bounds what is kept of what the tests print.
const maxSuiteOutput = 4 << 20

// try runs the suite in a process of its own, and reads what it found.
func (a *app) try(ctx context.Context, t adapterTrial, run string, verbose bool) (trialReport, error) {
	var report trialReport
	self, err := os.Executable()
	if err != nil {
		return report, pcm.Errorf(pcm.Internal, "can't find this program's own file: %w", err)
	}
	dir, err := os.MkdirTemp("", "pcm-adapter-test")
	if err != nil {
		return report, pcm.Errorf(pcm.Internal, "can't make a folder for what is found: %w", err)
	}
	defer os.RemoveAll(dir)
	found := filepath.Join(dir, "found")
	spec, err := json.Marshal(t)
	if err != nil {
		return report, pcm.Errorf(pcm.Internal, "can't encode what is tested: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, "adapter-suite", string(spec), run)
	cmd.Env = append(os.Environ(), "PCM_TEST_MATRIX="+found)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute // it ends what it has started
	kept := &tail{most: maxSuiteOutput}
	cmd.Stdout, cmd.Stderr = kept, kept
	if verbose {
		cmd.Stdout, cmd.Stderr = a.errOut, a.errOut
	}
	why := &whys{to: cmd.Stdout}
	cmd.Stdout, cmd.Stderr = why, why
	failed := cmd.Run()
	data, err := os.ReadFile(found)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return report, pcm.Errorf(pcm.Internal, "can't read what was found: %w", err)
	}
	matrix, err := adaptertest.ReadFindings(data)
	if err != nil {
		return report, pcm.Errorf(pcm.Internal, "can't read what was found: %w", err)
	}
	if err := adaptertest.Add(t.Subject, matrix[t.Name]); err != nil {
		return report, pcm.Errorf(pcm.Internal, "can't add what was found to the matrix: %w", err)
	}
	report = reportOf(matrix[t.Name], why)
	unsaid := slices.ContainsFunc(report.Findings, func(f adaptertest.Finding) bool { return f.Result == adaptertest.Fail && f.Reason == noWhy })
	if (failed != nil && report.Failed == 0 || unsaid) && !verbose {
		a.errOut.Write(kept.bytes()) // says what was wrong
	}
	if ctx.Err() != nil {
		return report, pcm.Errorf(pcm.Unavailable, "the tests were interrupted")
	}
	if failed != nil && report.Failed == 0 {
		return report, pcm.Errorf(pcm.Internal, "the tests could not be run to their end: %w", failed)
	}
	if len(report.Findings) == 0 {
		return report, pcm.Errorf(pcm.Invalid, "no capability matches --run %q", run)
	}
	return report, nil
}

const noWhy = "its test does not say why"

// reportOf puts what was found in order, with what the tests that failed said.
func reportOf(row map[string]adaptertest.Finding, why *whys) trialReport {
	report := trialReport{Findings: []adaptertest.Finding{}}
	for _, c := range adaptertest.Capabilities() {
		f, ok := row[c.Name]
		if !ok {
			report.Skipped++
			continue
		}
		switch f.Result {
		case adaptertest.Pass:
			report.Passed++
		case adaptertest.Unsupported:
			report.Unsupported++
		default:
			report.Failed++
			f.Reason = cmp.Or(why.of(c.Name), noWhy)
		}
		report.Findings = append(report.Findings, f)
	}
	return report
}

// tail keeps the last bytes that were written.
type tail struct {
	most int
	buf  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	if t.buf.Len() > t.most {
		t.buf.Next(t.buf.Len() - t.most/2)
	}
	return t.buf.Write(p)
}

func (t *tail) bytes() []byte { return t.buf.Bytes() }

// adapterScriptCommand is what tasks of the suite run.
func adapterScriptCommand() *cobra.Command {
	return &cobra.Command{
		Use: "adapter-script STEP…", Hidden: true, Short: "Do what the tests of adapters have tasks do ('pcm adapter test' uses this)", DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) { script.Main(args) },
	}
}

// adapterSuperviseCommand is the supervisor of a plug-in that is tested.
func (a *app) adapterSuperviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "adapter-supervise TRIAL DIR", Hidden: true, Short: "Hold the leases of a tested plug-in's tasks ('pcm adapter test' starts this)", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			var t adapterTrial
			if err := json.Unmarshal([]byte(args[0]), &t); err != nil {
				return pcm.Errorf(pcm.Invalid, "adapter-supervise needs its settings as JSON; 'pcm adapter test' starts it by itself")
			}
			return t.supervise(ctx, args[1])
		},
	}
}

// adapterSuiteCommand runs the tests themselves, as the program that go test makes would.
func (a *app) adapterSuiteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "adapter-suite TRIAL PATTERN", Hidden: true, Short: "Run the conformance suite ('pcm adapter test' starts this)", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			var t adapterTrial
			if err := json.Unmarshal([]byte(args[0]), &t); err != nil {
				return pcm.Errorf(pcm.Invalid, "adapter-suite needs its settings as JSON; 'pcm adapter test' starts it by itself")
			}
			return t.suite(args[0], args[1])
		},
	}
}

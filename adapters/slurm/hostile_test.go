package slurm

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// commands is a runner whose Slurm is scripts, by name.
func commands(t *testing.T, scripts map[string]string) *Runner {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"sbatch", "squeue", "scancel", "scontrol", "sinfo"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+scripts[name]+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r, err := NewRunner(Config{Dir: t.TempDir(), Shared: t.TempDir(), Commands: bin}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(t.Context()) })
	return r
}

func runOf(t *testing.T, command ...string) *supervisor.Run {
	t.Helper()
	run := newRun(pcm.Resources{}, command...)
	run.Work = t.TempDir()
	run.Stdout, run.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	run.Started, run.Used = func() {}, func(int64, pcm.Bytes) {}
	run.Report = func(adapters.State, string, string) {}
	return run
}

// here is an sbatch that runs what it is given at once, as job 1 of a node.
const here = `SLURM_JOB_ID=1 SLURMD_NODENAME=n1 /bin/sh >/dev/null 2>&1; echo 1`

// An sbatch that was killed may have been heard or not: it is no refusal.
func TestSubmitKilled(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "killed")
	r := commands(t, map[string]string{"sbatch": `[ -e ` + flag + ` ] || { : >` + flag + `; kill -9 $$; }; ` + here})
	if exit := supervisor.Follow(t.Context(), r, runOf(t, "true")); exit.Outcome != pcm.OutcomeOK {
		t.Errorf("%+v", exit)
	}
}

// What Slurm refuses after a try whose answer was lost never begins.
func TestRefusedIsClaimed(t *testing.T) {
	r := commands(t, map[string]string{"sbatch": `echo "sbatch: error: no such partition" >&2; exit 1`})
	run := runOf(t, "true")
	if exit := supervisor.Follow(t.Context(), r, run); exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "no such partition") {
		t.Errorf("%+v", exit)
	}
	if b, ok := r.spool.readBegun(run.Key.String(), 1, "start"); !ok || b.Job != "none" {
		t.Errorf("it could still begin: %+v, %v", b, ok)
	}
}

// A node that has no space to note that it begins runs nothing: that is no fault of the task's.
func TestHalfStart(t *testing.T) {
	s := spool(t.TempDir())
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	key := adaptertest.NewTask().Key.String()
	for _, half := range []string{"", "job=1\n", "job=1\nhost=n1\nrestarts=0"} {
		if err := os.WriteFile(s.evidence(key, 1, "start"), []byte(half), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, ok := s.readBegun(key, 1, "start"); ok {
			t.Errorf("%q is a begin: %+v", half, b)
		}
		if ok, err := s.claim(key, 1); ok || err != nil {
			t.Errorf("%q was claimed: %v, %v", half, ok, err)
		}
	}
	r := commands(t, map[string]string{
		"sbatch":   `echo 1`,
		"squeue":   `exit 0`,
		"scontrol": `exit 1`,
	})
	run := runOf(t, "true")
	if err := os.WriteFile(r.spool.evidence(run.Key.String(), 1, "start"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit := supervisor.Follow(t.Context(), r, run); exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "space") {
		t.Errorf("%+v", exit)
	}
}

// What a task puts in the place of its files leads nobody to this host's own.
func TestPlantedLinks(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, plant := range map[string]string{
		"stdout": `rm "$D/stdout"; ln -s ` + secret + ` "$D/stdout"`,
		"pipe":   `rm "$D/stdout"; mkfifo "$D/stdout"`,
		"work":   `mv "$D/work" "$D/w"; ln -s ` + filepath.Dir(secret) + ` "$D/work"`,
		"gone":   `rm "$D/stdout"`,
	} {
		t.Run(what, func(t *testing.T) {
			r := commands(t, map[string]string{"sbatch": here})
			run := runOf(t, "sh", "-c", `case "$PWD" in */attempts/*/work) ;; *) exit 1;; esac; D=$(cd .. && pwd) || exit 1; cd /; `+plant)
			run.Outputs, run.OutputCap = []string{"key"}, 1<<20
			exit := supervisor.Follow(t.Context(), r, run)
			if exit.Outcome != pcm.OutcomeSeller {
				t.Errorf("%+v", exit)
			}
			if out := run.Stdout.(*bytes.Buffer).String(); strings.Contains(out, "secret") {
				t.Error("the host's file was printed")
			}
			if data, err := os.ReadFile(filepath.Join(run.Work, "key")); err == nil {
				t.Errorf("the host's file became an output: %q", data)
			}
		})
	}
	name := filepath.Join(t.TempDir(), "kill")
	if err := os.Symlink(secret, name+".new"); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(name, nil); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(secret); string(data) != "secret" {
		t.Errorf("the host's file was written to: %q", data)
	}
	fifo := filepath.Join(t.TempDir(), "exit")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { readSmall(fifo); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("a pipe is waited for")
	}
}

// Without a working folder nothing is run: the shell's cd to none stays where Slurm has begun.
func TestNoFolder(t *testing.T) {
	s := spool(t.TempDir())
	task := adaptertest.NewTask()
	mark := filepath.Join(t.TempDir(), "ran")
	task.Command = []string{"touch", mark}
	if err := errors.Join(s.open(), os.Mkdir(s.attempt(task.Key.String()), 0o700)); err != nil {
		t.Fatal(err)
	}
	exec.Command("/bin/sh", "-c", wrapper(s, task, 1, "", nil)).Run()
	if o, ok := s.readOver(task.Key.String(), 1); !ok || o.Fault == "" {
		t.Errorf("%+v, %v", o, ok)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("it has run")
	}
}

// The last word of a task that was given up does not stay for ever.
func TestLateEvidence(t *testing.T) {
	r := commands(t, nil)
	late := adaptertest.NewTask().Key.String()
	if err := os.WriteFile(r.spool.evidence(late, 1, "exit"), []byte("code=0\nend\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	live := adaptertest.NewTask().Key.String()
	if err := os.MkdirAll(filepath.Join(r.cfg.Dir, "tasks", live), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.spool.claim(live, 1); err != nil {
		t.Fatal(err)
	}
	r.tidyEvidence()
	if left, _ := readNames(r.spool.events()); len(left) != 1 || keyOf(left[0]) != live {
		t.Errorf("left: %v", left)
	}
}

// Slurm starts once more what it has forgotten to run, and kills the first copy: that
// is no end of the task's own.
func TestKilledForAnotherCopy(t *testing.T) {
	r := commands(t, map[string]string{"sbatch": `SLURM_JOB_ID=1 SLURMD_NODENAME=n1 /bin/sh >/dev/null 2>&1; echo 1`, "squeue": `exit 0`, "scontrol": `exit 1`})
	run := runOf(t, "sh", "-c", "kill -9 $$")
	if err := os.WriteFile(r.spool.evidence(run.Key.String(), 1, "refused"), []byte("job=1\nhost=n2\nrestarts=0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if exit := supervisor.Follow(t.Context(), r, run); exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "had begun on n1") {
		t.Errorf("%+v", exit)
	}
}

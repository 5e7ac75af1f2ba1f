package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bugEnv names the planted bug that a peer of a program with bugs has.
const bugEnv = "PCM_CHAOS_BUG"

// exitBroken is the exit status of a run that found a broken promise.
const exitBroken = 3

// bug is a mistake that could be made: code in the place of other code. All bugs are
// built into one program beside the sources, which stay as they are; a peer has the one
// that its environment names.
type bug struct {
	name     string
	file     string // from the module's root
	old, new string // old is there once
	plan     plan
}

// plan is a run that is short since it does little beside what brings a bug out: flags
// of this program. The seed draws what is done when, and to whom.
type plan []string

// A cell of one voter is enough where the ledger itself would be wrong, whatever happens to
// its peers: traders try what must be refused.
func tries(probes ...int) plan {
	p := plan{"-cells", "1", "-only", "none", "-faults", "0", "-operations", "600", "-attempts", "50"}
	if len(probes) > 0 {
		var list []string
		for _, n := range probes {
			list = append(list, fmt.Sprint(n))
		}
		p = append(p, "-probes", strings.Join(list, ","))
	}
	return p
}

// The others need replicas, or faults.
var (
	calm     = plan{"-cells", "3", "-only", "none", "-faults", "0", "-operations", "800", "-attempts", "50"}
	cuts     = plan{"-cells", "3", "-only", "leader cut off", "-faults", "2", "-operations", "600", "-attempts", "30"}
	outages  = plan{"-cells", "1", "-only", "power cut of all", "-after", "1000", "-snapshot", "20", "-pause", "2s", "-patience", "8s", "-limit", "30s", "-faults", "3", "-operations", "1500", "-attempts", "100"}
	outage   = plan{"-cells", "1", "-only", "power cut of all", "-after", "300", "-faults", "1", "-operations", "300", "-attempts", "30", "-patience", "8s", "-limit", "20s"}
	abroad   = plan{"-cells", "1,1", "-abroad", "-only", "none", "-faults", "0", "-operations", "1500", "-attempts", "100"}
	harmless = []bug{
		{name: "(none)", plan: tries()}, {name: "(none: three voters)", plan: calm}, {name: "(none: leaders cut off)", plan: cuts},
		{name: "(none: power cuts)", plan: outages}, {name: "(none: two cells)", plan: abroad},
	}
)

var bugs = []bug{
	{"no fsync", "consensus/wal/wal.go",
		"\tif err == nil {\n\t\terr = frames.Datasync(seg.f)\n\t}\n",
		"\tif err == nil && !planted(\"no fsync\") {\n\t\terr = frames.Datasync(seg.f)\n\t}\n", outage},
	{"acknowledged before it is committed", "consensus/propose.go",
		"\tf := p.c.raft.ApplyLog(",
		`	if planted("acknowledged before it is committed") {
		for _, u := range units {
			for i := range u.results {
				if !u.refused[i] {
					u.results[i] = pcm.CommandResult{Index: p.c.raft.LastIndex() + 1, Ops: make([]pcm.OpResult, 1)}
				}
			}
			u.finish(nil)
		}
	}
	f := p.c.raft.ApplyLog(`, cuts},
	{"command IDs are forgotten", "ledger/apply.go",
		"\ta.remember(cmd, result, worth && a.Level() >= baseLevel)\n",
		"\tif !planted(\"command IDs are forgotten\") {\n\t\ta.remember(cmd, result, worth && a.Level() >= baseLevel)\n\t}\n", tries(sendTwice)},
	{"a clock is read in Apply", "ledger/apply.go",
		"\ts.stamp = max(s.stamp, e.Stamp)\n",
		"\ts.stamp = max(s.stamp, e.Stamp)\n\tif planted(\"a clock is read in Apply\") {\n\t\ts.stamp += plantedClock()\n\t}\n", calm},
	{"snapshots run ahead of the history", "consensus/fsm.go",
		"\tif err := s.archive.flush(); err != nil {\n",
		"\tif planted(\"snapshots run ahead of the history\") {\n\t} else if err := s.archive.flush(); err != nil {\n", outages},
	{"settled ahead of the acceptance", "ledger/netting.go",
		"\t\tif _, err := j.placedBy(t.ID, t.Terms.Step, i); err == nil {\n",
		"\t\tif _, err := j.placedBy(t.ID, t.Terms.Step, i); err == nil && !planted(\"settled ahead of the acceptance\") {\n", tries(earlySettle)},
	{"old terms of drivers count", "ledger/jobs.go",
		"\tif j.Driver != a.by.Peer || j.Term != term {\n",
		"\tif j.Driver != a.by.Peer || j.Term != term && !planted(\"old terms of drivers count\") {\n", tries(oldPlace, oldAccept)},
	{"strangers drive", "ledger/jobs.go",
		"\tif j.Driver != a.by.Peer || ",
		"\tif j.Driver != a.by.Peer && !planted(\"strangers drive\") || ", tries(othersAccept)},
	{"accepted twice", "ledger/jobs.go",
		"\tif tk.State != pcm.TaskPlaced || tk.Trade != trade {\n",
		"\tif (tk.State != pcm.TaskPlaced || tk.Trade != trade) && !planted(\"accepted twice\") {\n", tries(acceptTwice)},
	{"paid twice", "ledger/balances.go",
		"\tb.Owed += paid\n",
		"\tb.Owed += paid\n\tif planted(\"paid twice\") {\n\t\tb.Owed += paid\n\t}\n", tries()},
	{"reads are stale", "consensus/admin.go",
		"\tif err := c.onLeader(ctx, \"sync\", ",
		"\tif planted(\"reads are stale\") {\n\t\treturn nil\n\t}\n\tif err := c.onLeader(ctx, \"sync\", ", cuts},
	{"signatures are not checked", "consensus/propose.go",
		"range p.c.cfg.Verify(batch) {\n",
		"range p.c.cfg.Verify(batch) {\n\t\tok = ok || planted(\"signatures are not checked\")\n", tries(badSignature)},
	{"a record is left out", "consensus/archive.go",
		"\tif known := state.Count - min(state.Count, op.first); ",
		`	if planted("a record is left out") && len(op.records) > 0 && op.first%50 == 7 {
		op.records[0] = nil
	}
	if known := state.Count - min(state.Count, op.first); `, tries()},
	{"results are mixed up", "consensus/propose.go",
		"\t\t\t\tu.results[i] = a.results[n]\n",
		"\t\t\t\tu.results[i] = a.results[n]\n\t\t\t\tif planted(\"results are mixed up\") {\n\t\t\t\t\tu.results[i] = a.results[0]\n\t\t\t\t}\n", tries()},
	{"commands never expire", "ledger/apply.go",
		"\tif cmd.NotAfter < a.stamp || ",
		"\tif cmd.NotAfter < a.stamp && !planted(\"commands never expire\") || ", tries(lateCommand)},
	{"commands of other cells are taken", "ledger/apply.go",
		"\tif cmd.Mesh != a.genesis.Mesh || cmd.Cell != a.genesis.Cell {\n",
		"\tif (cmd.Mesh != a.genesis.Mesh || cmd.Cell != a.genesis.Cell) && !planted(\"commands of other cells are taken\") {\n", tries(otherCell)},
	{"signed before it is committed", "consensus/tiles.go",
		"\tc.View(func() { size, root = c.fsm.machine.Root() })\n",
		`	c.View(func() { size, root = c.fsm.machine.Root() })
	if planted("signed before it is committed") {
		c.fsm.mu.Lock()
		defer c.fsm.mu.Unlock()
		state, err := c.fsm.machine.Snapshot()
		if err != nil {
			return size, root
		}
		applied, _ := c.fsm.progress()
		for i := applied + 1; i <= c.raft.LastIndex(); i++ {
			var l raft.Log
			if c.logs.GetLog(i, &l) != nil || l.Type != raft.LogCommand {
				continue
			}
			if e, err := c.fsm.decode(&l); err == nil {
				c.fsm.machine.Apply(i, e)
			}
		}
		size, root = c.fsm.machine.Root()
		if err := c.fsm.machine.Restore(state); err != nil {
			panic(err)
		}
	}
`, cuts},
	{"two voters", "consensus/autopilot.go",
		"\tcase n+2 <= most && len(ready) >= 2 && len(dead) == 0:\n",
		"\tcase planted(\"two voters\") && n < most && len(ready) == 1:\n\t\treturn plan{Changes: []change{{true, ready[0].Peer}}}\n\tcase n+2 <= most && len(ready) >= 2 && len(dead) == 0:\n", calm},
	{"void trades are awarded", "ledger/abroad.go",
		"\tcase void:\n",
		"\tcase void && !planted(\"void trades are awarded\"):\n", abroad},
	{"cleared with any sum", "ledger/abroad.go",
		"\tif op.Paid < 0 || op.Paid > most {\n",
		"\tif (op.Paid < 0 || op.Paid > most) && !planted(\"cleared with any sum\") {\n", abroad},
}

// plantedFile is what each package with bugs gets.
const plantedFile = `package %s

import (
	"os"
	"time"
)

var plantedBug = os.Getenv("` + bugEnv + `")

func planted(name string) bool { return plantedBug == name }

func plantedClock() int64 { return time.Now().UnixMilli() %% 3 }

var _ = plantedClock
`

// plant makes the sources with all bugs.
func plant(root string) (map[string]string, error) {
	files := map[string]string{}
	for _, b := range bugs {
		if files[b.file] == "" {
			data, err := os.ReadFile(filepath.Join(root, b.file))
			if err != nil {
				return nil, err
			}
			files[b.file] = string(data)
		}
		text, err := replaceOnce(files[b.file], b.old, b.new)
		if err != nil {
			return nil, fmt.Errorf("the bug %q has no place in %s any more: plant it elsewhere: %w", b.name, b.file, err)
		}
		files[b.file] = text
	}
	for path, text := range files {
		if b := slices.IndexFunc(bugs, func(b bug) bool { return b.file == path && strings.Contains(b.new, "raft.Log") }); b >= 0 && !strings.Contains(text, `"github.com/hashicorp/raft"`) {
			var err error
			if files[path], err = replaceOnce(text, "\nimport (\n", "\nimport (\n\t\"github.com/hashicorp/raft\"\n"); err != nil {
				return nil, err
			}
		}
		pkg := filepath.Dir(path)
		files[filepath.Join(pkg, "planted.go")] = fmt.Sprintf(plantedFile, filepath.Base(pkg))
	}
	return files, nil
}

// tooth is what became of one bug.
type tooth struct {
	name    string
	runs    int
	caught  int             // by a promise that it broke
	by      map[promise]int // which ones, in how many runs
	slow    int             // runs that only did not come to an end
	seconds float64
	problem string // what was told first
}

// teeth runs a program with bugs, some seeds for each. A run has caught a bug only if it
// names a promise that was broken: that a cell takes too long doesn't count. At least
// nine of ten runs must; those without a bug must find nothing.
func teeth(ctx context.Context, w io.Writer, keep string, from, seeds int, names []string) (err error) {
	dir := keep // where the program with bugs is left
	if dir == "" {
		if dir, err = os.MkdirTemp("", "pcm-teeth-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	program, err := variant(ctx, dir, "chaos", plant)
	if err != nil {
		return err
	}
	var bad []error
	fmt.Fprintln(w, "BUG                                  CAUGHT  SECONDS  BY")
	for _, b := range slices.Concat(harmless, bugs) {
		none := strings.HasPrefix(b.name, "(none")
		if len(names) > 0 && !slices.Contains(names, b.name) {
			continue
		}
		t := tooth{name: b.name, by: map[promise]int{}}
		began := time.Now()
		for t.runs < seeds && (!none || t.runs < 2) {
			if err := t.try(ctx, program, b, from+t.runs); err != nil {
				return err
			}
		}
		t.seconds = time.Since(began).Seconds()
		t.print(w)
		switch {
		case none && t.problem != "":
			bad = append(bad, fmt.Errorf("without a bug, something was found: %s", t.problem))
		case !none && 10*t.caught < 9*t.runs:
			bad = append(bad, fmt.Errorf("the bug %q was caught in %d of %d runs only; told was: %s", b.name, t.caught, t.runs, cmp.Or(t.problem, "nothing")))
		}
	}
	return errors.Join(bad...)
}

func (t *tooth) print(w io.Writer) {
	var by []string
	for _, p := range sortedKeys(t.by) {
		by = append(by, fmt.Sprintf("%s (%d)", p, t.by[p]))
	}
	if t.slow > 0 {
		by = append(by, fmt.Sprintf("not caught, only stuck (%d)", t.slow))
	}
	fmt.Fprintf(w, "%-35s %3d/%-4d %7.0f  %s\n", t.name, t.caught, t.runs, t.seconds, strings.Join(by, "; "))
}

// try runs the program once with one bug, and counts what it tells.
func (t *tooth) try(ctx context.Context, program string, b bug, seed int) error {
	args := append([]string{"-seed", fmt.Sprint(seed), "-for", "0s", "-patience", "20s", "-limit", "40s", "-bug", b.name, "-tasks", "0", "-bare", "-hasty", "-older", "none"}, b.plan...)
	run := exec.CommandContext(ctx, program, args...)
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // its peers go with it
	out, err := run.CombinedOutput()
	t.runs++
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	_, told, ok := strings.Cut(string(out), errBroken.Error()+":\n")
	if exit.ExitCode() != exitBroken || !ok {
		return fmt.Errorf("a run with the bug %q has failed: %s", b.name, lastLine(out))
	}
	broken := brokenBy(told)
	for _, p := range broken {
		t.by[p]++
	}
	if len(broken) > 0 {
		t.caught++
	} else {
		t.slow++
	}
	t.problem = cmp.Or(t.problem, strings.TrimSpace(told))
	return nil
}

// brokenBy are the promises that a run says were broken, but for the one that a cell comes back.
func brokenBy(told string) (broken []promise) {
	for line := range strings.Lines(told) {
		for _, p := range always {
			if strings.HasPrefix(strings.TrimSpace(line), problem{promise: p}.String()) && !slices.Contains(broken, p) {
				broken = append(broken, p)
			}
		}
	}
	return broken
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	outage   bool   // only power cuts of a whole cell bring it out
}

var bugs = []bug{
	{"no fsync", "consensus/wal/wal.go",
		"\tif err == nil {\n\t\terr = fdatasync(seg.f)\n\t}\n",
		"\tif err == nil && !planted(\"no fsync\") {\n\t\terr = fdatasync(seg.f)\n\t}\n", true},
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
	f := p.c.raft.ApplyLog(`, false},
	{"command IDs are forgotten", "ledger/apply.go",
		"\ta.remember(cmd, result)\n",
		"\tif !planted(\"command IDs are forgotten\") {\n\t\ta.remember(cmd, result)\n\t}\n", false},
	{"a clock is read in Apply", "ledger/apply.go",
		"\ts.stamp = max(s.stamp, e.Stamp)\n",
		"\ts.stamp = max(s.stamp, e.Stamp)\n\tif planted(\"a clock is read in Apply\") {\n\t\ts.stamp += plantedClock()\n\t}\n", false},
	{"snapshots run ahead of the history", "consensus/fsm.go",
		"\tif err := s.archive.flush(); err != nil {\n",
		"\tif planted(\"snapshots run ahead of the history\") {\n\t} else if err := s.archive.flush(); err != nil {\n", true},
	{"settled ahead of the acceptance", "ledger/netting.go",
		"\t\tif _, err := j.placedBy(t.ID, t.Terms.Step, i); err == nil {\n",
		"\t\tif _, err := j.placedBy(t.ID, t.Terms.Step, i); err == nil && !planted(\"settled ahead of the acceptance\") {\n", false},
	{"old terms of drivers count", "ledger/jobs.go",
		"\tif j.Driver != a.by.Peer || j.Term != term {\n",
		"\tif j.Driver != a.by.Peer || j.Term != term && !planted(\"old terms of drivers count\") {\n", false},
	{"strangers drive", "ledger/jobs.go",
		"\tif j.Driver != a.by.Peer || ",
		"\tif j.Driver != a.by.Peer && !planted(\"strangers drive\") || ", false},
	{"accepted twice", "ledger/jobs.go",
		"\tif tk.State != pcm.TaskPlaced || tk.Trade != trade {\n",
		"\tif (tk.State != pcm.TaskPlaced || tk.Trade != trade) && !planted(\"accepted twice\") {\n", false},
	{"paid twice", "ledger/balances.go",
		"\tb.Owed += paid\n",
		"\tb.Owed += paid\n\tif planted(\"paid twice\") {\n\t\tb.Owed += paid\n\t}\n", false},
	{"reads are stale", "consensus/admin.go",
		"\tif err := c.onLeader(ctx, \"sync\", ",
		"\tif planted(\"reads are stale\") {\n\t\treturn nil\n\t}\n\tif err := c.onLeader(ctx, \"sync\", ", false},
	{"signatures are not checked", "consensus/propose.go",
		"range p.c.cfg.Verify(batch) {\n",
		"range p.c.cfg.Verify(batch) {\n\t\tok = ok || planted(\"signatures are not checked\")\n", false},
	{"a record is left out", "consensus/archive.go",
		"\tstate.Count = max(state.Count, op.first+uint64(len(op.records)))\n",
		`	if planted("a record is left out") && len(op.records) > 0 && op.first%50 == 7 {
		if err := wb.Delete(recordKey(op.first)); err != nil {
			return err
		}
	}
	state.Count = max(state.Count, op.first+uint64(len(op.records)))
`, false},
	{"results are mixed up", "consensus/propose.go",
		"\t\t\t\tu.results[i] = a.results[n]\n",
		"\t\t\t\tu.results[i] = a.results[n]\n\t\t\t\tif planted(\"results are mixed up\") {\n\t\t\t\t\tu.results[i] = a.results[0]\n\t\t\t\t}\n", false},
	{"commands never expire", "ledger/apply.go",
		"\tif cmd.NotAfter < a.stamp || ",
		"\tif cmd.NotAfter < a.stamp && !planted(\"commands never expire\") || ", false},
	{"commands of other cells are taken", "ledger/apply.go",
		"\tif cmd.Mesh != a.genesis.Mesh || cmd.Cell != a.genesis.Cell {\n",
		"\tif (cmd.Mesh != a.genesis.Mesh || cmd.Cell != a.genesis.Cell) && !planted(\"commands of other cells are taken\") {\n", false},
}

// planted is what each package with bugs gets.
const plantedFile = `package %s

import (
	"cmp"
	"os"
	"time"
)

var plantedBug = os.Getenv("` + bugEnv + `")

func planted(name string) bool { return plantedBug == name }

func plantedClock() int64 { return time.Now().UnixMilli() %% 3 }

var _ = plantedClock
`

// plant writes the sources with all bugs, and what tells the compiler of them, into a folder.
func plant(root, dir string) (overlay string, err error) {
	replace := map[string]string{}
	text := map[string]string{}
	packages := map[string]bool{}
	for _, b := range bugs {
		path := filepath.Join(root, b.file)
		if text[path] == "" {
			data, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			text[path] = string(data)
		}
		if n := strings.Count(text[path], b.old); n != 1 {
			return "", fmt.Errorf("the bug %q has no place in %s any more: %q is there %d times; plant it elsewhere", b.name, b.file, b.old, n)
		}
		text[path] = strings.Replace(text[path], b.old, b.new, 1)
		packages[filepath.Dir(b.file)] = true
	}
	add := func(path, content string) error {
		file := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		replace[path] = file
		return os.WriteFile(file, []byte(content), 0o600)
	}
	for path, content := range text {
		if err := add(path, content); err != nil {
			return "", err
		}
	}
	for pkg := range packages {
		if err := add(filepath.Join(root, pkg, "planted.go"), fmt.Sprintf(plantedFile, filepath.Base(pkg))); err != nil {
			return "", err
		}
	}
	overlay = filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	return overlay, os.WriteFile(overlay, data, 0o600)
}

// teeth runs a program with bugs, once for each bug and seed: at least nine of ten
// seeds must find it. Without a bug, the same program must find nothing.
func teeth(ctx context.Context, seeds int, only string) error {
	dir, err := os.MkdirTemp("", "pcm-teeth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("not within the module: %w", err)
	}
	overlay, err := plant(strings.TrimSpace(string(root)), dir)
	if err != nil {
		return err
	}
	binary := filepath.Join(dir, "chaos")
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", binary, "github.com/jointcloud/pcm/cmd/chaos")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	build.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := build.Run(); err != nil {
		return fmt.Errorf("can't build a program with bugs: %w", err)
	}
	var bad []error
	fmt.Println("BUG                                 FOUND IN  SECONDS  AS")
	for _, b := range append([]bug{{name: "(none)"}, {name: "(none, power cuts)", outage: true}}, bugs...) {
		none := strings.HasPrefix(b.name, "(none")
		if only != "" && b.name != only && !none {
			continue
		}
		found, runs, began, as := 0, 0, time.Now(), ""
		for runs < seeds && (!none || runs < 2) {
			runs++
			problem, err := tryBug(ctx, binary, b, runs)
			if err != nil {
				return err
			}
			if problem != "" {
				found++
				as = cmp.Or(as, problem)
			}
		}
		fmt.Printf("%-34s %5d/%-4d %7.0f  %s\n", b.name, found, runs, time.Since(began).Seconds(), as)
		switch {
		case none && found > 0:
			bad = append(bad, fmt.Errorf("without a bug, something was found: %s", as))
		case !none && 10*found < 9*runs:
			bad = append(bad, fmt.Errorf("the bug %q was found in %d of %d runs only", b.name, found, runs))
		}
	}
	return errors.Join(bad...)
}

// tryBug runs the program with one bug, and tells what was found; "" if nothing was.
func tryBug(ctx context.Context, binary string, b bug, seed int) (problem string, err error) {
	args := []string{"-seed", fmt.Sprint(seed), "-for", "0s", "-cells", "3", "-patience", "60s", "-limit", "4m", "-bug", b.name, "-tasks", "0"}
	if b.outage {
		args = append(args, "-only", "power cut of all", "-pause", "6s", "-faults", "4", "-operations", "500", "-attempts", "50")
	} else {
		args = append(args, "-faults", "30", "-operations", "2500", "-attempts", "100")
	}
	run := exec.CommandContext(ctx, binary, args...)
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // its peers go with it
	out, err := run.CombinedOutput()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case !errors.As(err, &exit):
		return "", err
	}
	if exit.ExitCode() == exitBroken {
		if _, problems, ok := strings.Cut(string(out), errBroken.Error()+":\n"); ok {
			first, _, _ := strings.Cut(strings.TrimSpace(problems), "\n")
			return first, nil
		}
	}
	return lastLine(out), nil // it doesn't even come to trade
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

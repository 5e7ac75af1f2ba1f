package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// Who takes a job over builds on its spec: one that is not the job's, or does
// not fit what the ledger has, is refused.
func TestSpecMustFitItsJob(t *testing.T) {
	submitter, stranger := pcm.NewKey(), pcm.NewKey()
	spec := pcm.Spec{Name: "x", Steps: []pcm.Step{{Count: 2, Retries: 1, Command: []string{"true"}}}}
	if faults := spec.Normalize(); len(faults) > 0 {
		t.Fatal(faults)
	}
	open := func(k pcm.Key, s pcm.Spec) heldSpec {
		h, err := openSpec(k.Seal(pcm.DomainSpec, s))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	good := open(submitter, spec)
	job := func() *ledger.Job {
		return &ledger.Job{Spec: good.digest, Submitter: submitter.Peer(), Steps: []ledger.Step{{Retries: 1, Tasks: make([]ledger.Task, 2)}}}
	}
	if err := good.fits(job()); err != nil {
		t.Fatal(err)
	}
	other := spec
	other.Name = "y"
	if err := open(submitter, other).fits(job()); err == nil {
		t.Error("another spec fits")
	}
	if err := open(stranger, spec).fits(job()); err == nil {
		t.Error("a spec signed by a stranger fits")
	}
	for name, change := range map[string]func(*ledger.Job){
		"more steps":    func(j *ledger.Job) { j.Steps = append(j.Steps, j.Steps[0]) },
		"more tasks":    func(j *ledger.Job) { j.Steps[0].Tasks = make([]ledger.Task, 3) },
		"other retries": func(j *ledger.Job) { j.Steps[0].Retries = 0 },
	} {
		j := job()
		change(j)
		if err := good.fits(j); err == nil {
			t.Errorf("it fits a job with %s", name)
		}
	}
}

func TestSourcePath(t *testing.T) {
	dir := t.TempDir()
	base, outside := filepath.Join(dir, "base"), filepath.Join(dir, "outside")
	for _, d := range []string{base, outside} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "in"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ base, source, want, fault string }{
		{base, "in", filepath.Join(base, "in"), ""},
		{base, "../outside", outside, ""}, // it says itself that it is elsewhere
		{"", "/etc/hosts", "/etc/hosts", ""},
		{base, "missing", filepath.Join(base, "missing"), ""}, // the import says so
		{"", "in", "", "no folder is given"},
		{base, "link", "", "leads out of"},
		{base, "link/.", "", "leads out of"},
	} {
		got, err := sourcePath(c.base, c.source)
		if c.fault == "" && (err != nil || got != c.want) {
			t.Errorf("%q from %q: %q, %v; want %q", c.source, c.base, got, err, c.want)
		}
		if c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%q from %q: %v; want %q", c.source, c.base, err, c.fault)
		}
	}
}

package nodetest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// These tests are about tasks while they run: commands beside them, copies,
// services and their ports.

// begun waits until the first task of a job runs at its back end.
func begun(t *testing.T, p *nodetest.Peer, id pcm.JobID) api.Task {
	t.Helper()
	task := p.AwaitRunning(id)
	nodetest.Eventually(t, string(id)+" runs at its seller", func(ctx context.Context) error {
		v, err := p.Look(ctx, string(id), task.Step, task.Index)
		if err == nil && v.State != "running" {
			err = fmt.Errorf("it is %+v", v)
		}
		return err
	})
	return task
}

// TestTasksAtWork: a buyer works with its task at a seller of another account.
func TestTasksAtWork(t *testing.T) {
	t.Parallel()
	_, anna, bert, carl := three(t)
	j := carl.Send(nodetest.Command(1, "echo made > here; while ! test -e go; do sleep 0.05; done; cat in/deep/file; cat go"), "")
	task := begun(t, carl, j.ID)
	at := string(j.ID) + "/run/0"

	if r := carl.PCM("exec", at, "--", "sh", "-c", "cat here; echo oops >&2; exit 7"); r.Code != 7 || r.Stdout != "made\n" || r.Stderr != "oops\n" {
		t.Errorf("exec: %+v", r)
	}
	var out bytes.Buffer
	code, err := carl.Exec(t.Context(), string(j.ID), "run", 0, api.ExecRequest{
		Command: []string{"sh", "-c", "read line; echo got $line; stty size; test -t 0 && exit 3"}, TTY: true, Rows: 41, Cols: 123,
		Stdin: strings.NewReader("words\n"), Stdout: &out,
	})
	if code != 3 || err != nil || !strings.Contains(out.String(), "got words") || !strings.Contains(out.String(), "41 123") {
		t.Errorf("with a terminal: code %d, %v, %q", code, err, out.String())
	}
	big := strings.Repeat("0123456789", 100_000)
	out.Reset()
	if code, err = carl.Exec(t.Context(), string(j.ID), "run", 0, api.ExecRequest{Command: []string{"cat"}, Stdin: strings.NewReader(big), Stdout: &out}); code != 0 || err != nil || out.String() != big {
		t.Errorf("a megabyte through: code %d, %d bytes, %v", code, out.Len(), err)
	}

	// Strangers may not, be they members or sellers of other things; the seller may look into its own machine.
	stranger := anna
	if task.SellerName == "anna" {
		stranger = bert
	}
	if r := stranger.PCM("exec", at, "--", "true"); r.Code != 3 || !strings.Contains(r.Stderr, "for account") {
		t.Errorf("a stranger's exec: %+v", r)
	}

	// A folder goes in, and comes out.
	src := t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, "tree", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(src, "tree", "deep", "file"), "carried\n")
	write(t, filepath.Join(src, "last"), "over\n")
	if r := carl.PCM("cp", filepath.Join(src, "tree"), at+":in"); r.Code != 0 {
		t.Errorf("cp in: %+v", r)
	}
	back := t.TempDir()
	if r := carl.PCM("cp", at+":in", filepath.Join(back, "out")); r.Code != 0 {
		t.Errorf("cp out: %+v", r)
	}
	if got := read(t, back, "out/deep/file"); got != "carried\n" {
		t.Errorf("came back as %q", got)
	}
	if r := carl.PCM("cp", at+":../x", back); r.Code != 2 {
		t.Errorf("cp from outside: %+v", r)
	}

	// Suspended, it does nothing; then it goes on and ends.
	if r := carl.PCM("job", "suspend", string(j.ID)); r.Code != 0 {
		t.Fatalf("suspend: %+v", r)
	}
	nodetest.Eventually(t, "it is suspended", func(ctx context.Context) error {
		v, err := carl.Look(ctx, string(j.ID), "run", 0)
		if err == nil && v.State != "suspended" {
			err = fmt.Errorf("it is %+v", v)
		}
		return err
	})
	if r := carl.PCM("cp", filepath.Join(src, "last"), at+":go"); r.Code != 0 {
		t.Errorf("cp in: %+v", r)
	}
	if r := carl.PCM("job", "resume", string(j.ID)); r.Code != 0 {
		t.Fatalf("resume: %+v", r)
	}
	carl.Done(j.ID)
	if got := read(t, carl.Get(j.ID), "run/0/stdout"); got != "carried\nover\n" {
		t.Errorf("it wrote %q", got)
	}
	if r := carl.PCM("exec", at, "--", "true"); r.Code != 3 || !strings.Contains(r.Stderr, "it is done") {
		t.Errorf("exec after the end: %+v", r)
	}
}

package slurm

import (
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

// TestConformanceElsewhere runs the suite against a slurmrestd that somebody else
// started, of any version: PCM_TEST_SLURMRESTD is its address,
// PCM_TEST_SLURMRESTD_TOKEN the file with root's token. The nodes must see /tmp.
func TestConformanceElsewhere(t *testing.T) {
	url, token := os.Getenv("PCM_TEST_SLURMRESTD"), os.Getenv("PCM_TEST_SLURMRESTD_TOKEN")
	if url == "" {
		if require.Named("slurmrestd") {
			t.Fatal("PCM_TEST_SLURMRESTD names no slurmrestd")
		}
		t.Skip("NO OTHER SLURMRESTD IS TESTED HERE: PCM_TEST_SLURMRESTD names none")
	}
	cfg := Config{URL: url, User: "root", TokenFile: token, Timeout: 10 * time.Second}
	adaptertest.Run(t, adaptertest.Subject{
		Name: "slurm (another slurmrestd)", Script: script, Remote: true, Parallel: 4, Pace: time.Second, Patience: 2 * time.Minute, Enough: 4 << 30,
		New:     func(t *testing.T) adaptertest.Instance { return elsewhere(t, cfg) },
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		Unsupported: map[string]string{
			"no network": "tasks have their node's network", "images": "a job runs the programs of its node",
			"read-only inputs": "inputs are copies", "out of memory": "depends on that cluster", "accelerators": "depends on that cluster",
			"waiting": "it is not ours to fill", "back end hung": "it is not ours to stop", "back end restarted": "it is not ours to restart",
			"supervisor lost":    "its record of jobs can't be read from here",
			"suspend and resume": "slurmrestd has no such request", "exec": "slurmrestd has no such request",
		},
	})
}

func elsewhere(t *testing.T, cfg Config) adaptertest.Instance {
	t.Helper()
	box := adaptertest.NewBox(t, string(encode(t, cfg)))
	cfg.Dir = box.Dir
	return adaptertest.Instance{
		Adapter: open(t, cfg, box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return open(t, cfg, box.Reconnect()) },
	}
}

// recorded answers as a slurmrestd of the version did: testdata holds what real
// ones said of the same jobs, nodes and partitions. It takes the token "good" only.
func recorded(t *testing.T, version string) (Config, *[]string) {
	t.Helper()
	var submitted []string
	status := map[string][2]int{"v0.0.38": {500, 500}, "v0.0.42": {511, 404}}[version] // a refused token, no such job
	answer := func(w http.ResponseWriter, code int, name string) {
		data, err := os.ReadFile(filepath.Join("testdata", version, name))
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(code)
		w.Write(data)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/slurm/"+version+"/")
		switch {
		case !ok:
			http.Error(w, "Unable find requested URL.", http.StatusNotFound)
		case rest == "ping":
			w.Write([]byte(`{"errors": []}`))
		case r.Header.Get("X-SLURM-USER-TOKEN") != "good" || r.Header.Get("X-SLURM-USER-NAME") != "root":
			answer(w, status[0], "refused.json")
		case rest == "job/submit":
			body, _ := io.ReadAll(r.Body)
			submitted = append(submitted, string(body))
			w.Write([]byte(`{"job_id": 77, "step_id": "batch", "errors": []}`))
		case rest == "job/99999":
			answer(w, status[1], "nojob.json")
		case rest == "jobs" || strings.HasPrefix(rest, "job/"):
			answer(w, 200, "jobs.json")
		default:
			answer(w, 200, rest+".json")
		}
	}))
	t.Cleanup(s.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{URL: s.URL, User: "root", TokenFile: token, Account: "lab", Timeout: 10 * time.Second}, &submitted
}

func TestDialects(t *testing.T) {
	for _, version := range []string{"v0.0.38", "v0.0.42"} {
		t.Run(version, func(t *testing.T) {
			ctx := t.Context()
			cfg, submitted := recorded(t, version)
			r, err := newREST(cfg)
			if err != nil {
				t.Fatal(err)
			}
			all, err := r.jobs(ctx)
			if err != nil {
				t.Fatal(err)
			}
			jobs := map[string]job{}
			for _, j := range all {
				name := j.Name
				if j.Indexes != "" {
					name += "[]"
				}
				jobs[name] = j
			}
			for name, want := range map[string]job{
				"pcm.failed":    {State: "FAILED", ExitCode: 3, Index: -1},
				"pcm.killed":    {State: "FAILED", ExitCode: 137, Index: -1},
				"pcm.cancelled": {State: "CANCELLED", ExitCode: 143, Index: -1},
				"pcm.array":     {State: "RUNNING", Index: 0},
				"pcm.array[]":   {State: "PENDING", Index: -1, Reason: "JobArrayTaskLimit"},
			} {
				j := jobs[name]
				if j.State != want.State || j.ExitCode != want.ExitCode || j.Index != want.Index || want.Reason != "" && j.Reason != want.Reason ||
					j.Memory != 100<<20 || j.Comment != "pcm 0011" || j.Submitted.IsZero() || j.ID <= 0 {
					t.Errorf("%s is read as %+v", name, j)
				}
			}
			if a, b := jobs["pcm.array"], jobs["pcm.array[]"]; a.ID != b.ID || a.Raw == a.ID || !b.covers(1) || !b.covers(4) || b.covers(0) || a.Node != "n1" {
				t.Errorf("the array is read as %+v and %+v", a, b)
			}
			nodes, err := r.nodes(ctx)
			if err != nil || len(nodes) != 2 {
				t.Fatal(nodes, err)
			}
			for i, usable := range []bool{true, false} {
				n := nodes[i]
				if n.usable() != usable || n.CPUs != 8 || n.Memory != 16000<<20 || n.Arch != "x86_64" || n.Address != "127.0.0.1" || len(n.Partitions) == 0 || n.Partitions[0] != "main" {
					t.Errorf("node %+v", n)
				}
			}
			if nodes[0].Allocated == 0 || nodes[0].Used == 0 {
				t.Errorf("a node with jobs is read as %+v", nodes[0])
			}
			parts, err := r.partitions(ctx)
			if err != nil || len(parts) == 0 || parts[0] != (partition{Name: "main", Up: true}) {
				t.Errorf("partitions %+v, %v", parts, err)
			}
			if _, err := r.end(ctx, jobRef{99999, -1, "pcm.x"}); pcm.ErrorCode(err) != pcm.NotFound {
				t.Errorf("a job that isn't there: %v", err)
			}
			// The number of a job that has another name by now is not touched.
			if err := r.signal(ctx, jobRef{jobs["pcm.failed"].ID, -1, "pcm.other"}, ""); pcm.ErrorCode(err) != pcm.NotFound {
				t.Errorf("cancelling what is not ours: %v", err)
			}
			id, err := r.submit(ctx, batch{Name: "pcm.n", Script: "#!/bin/sh\n", Count: 3, Width: 2, Minutes: 5, GPU: "a100", Each: pcm.Resources{CPU: 1500, Memory: 100 << 20, GPU: 2}})
			if err != nil || id != 77 {
				t.Fatal(id, err)
			}
			golden(t, filepath.Join("testdata", version, "submit.golden"), (*submitted)[0])

			if err := os.WriteFile(cfg.TokenFile, []byte("expired"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := r.jobs(ctx); err != nil {
				t.Errorf("the token that is still good was dropped: %v", err)
			}
			fresh, _ := newREST(cfg)
			if _, err := fresh.jobs(ctx); pcm.ErrorCode(err) != pcm.Unavailable {
				t.Errorf("with a token that is refused: %v", err)
			}
			if err := os.WriteFile(cfg.TokenFile, []byte("SLURM_JWT=good\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := fresh.jobs(ctx); err != nil {
				t.Errorf("with a new token: %v", err)
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got+"\n" != string(want) {
		t.Errorf("submitted\n%s\nexpected\n%s", got, want)
	}
}

var update = flag.Bool("update", false, "write what is submitted to testdata")

// What a hostile or broken server says ends nothing but the call.
func FuzzREST(f *testing.F) {
	for _, version := range []string{"v0.0.38", "v0.0.42"} {
		for _, name := range []string{"jobs", "nodes", "partitions", "refused"} {
			data, err := os.ReadFile(filepath.Join("testdata", version, name+".json"))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(`{"jobs": [{"job_id": {"set": true, "number": 1e300}, "job_state": [[]], "exit_code": {"signal": null}, "array_task_string": "0-,%:"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var jobs struct {
			Jobs []restJob `json:"jobs"`
		}
		if json.Unmarshal(data, &jobs) == nil {
			for _, j := range jobs.Jobs {
				o := j.open()
				o.covers(3)
				if o.ExitCode < 0 {
					t.Errorf("exit code %d", o.ExitCode)
				}
			}
		}
		var nodes struct {
			Nodes []restNode `json:"nodes"`
		}
		if json.Unmarshal(data, &nodes) == nil {
			for _, n := range nodes.Nodes {
				n.open().usable()
			}
		}
		parseQueue(string(data))
	})
}

package kubernetes

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// pretended is a cluster that answers as told.
func pretended(t *testing.T, answer http.HandlerFunc) *Runner {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	config := &rest.Config{Host: s.URL}
	api, err := dynamic.NewForConfigAndClient(config, s.Client())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Settings{Instance: "i-1", Namespace: "pcm"}, config, s.Client(), api}
	log := slog.New(slog.DiscardHandler)
	return &Runner{
		set: c.set, c: c, log: log, tracker: newTracker(c, log), batches: newBatches(), gates: newGates(),
		follows: make(chan struct{}, 2), creates: make(chan struct{}, 2),
	}
}

func runOf(t *testing.T) *supervisor.Run {
	t.Helper()
	return &supervisor.Run{
		Task: adaptertest.NewTask(), Work: t.TempDir() + "/work", Stdout: io.Discard, Stderr: io.Discard,
		Started: func() {}, Report: func(adapters.State, string, string) {}, Used: func(int64, pcm.Bytes) {},
	}
}

// A pod of an array whose attempt has ended here is ended, though the Job stays for the others.
func TestStrayPods(t *testing.T) {
	tr := newTracker(nil, slog.New(slog.DiscardHandler))
	tr.swept, tr.ready = true, [2]bool{true, true}
	first := adaptertest.NewTask().Key
	pod := func(index int, status map[string]any) {
		o := podOf(status, false)
		o.SetName("p" + strconv.Itoa(index))
		o.SetAnnotations(map[string]string{noteArray: first.String(), noteSize: "4", noteIndex: strconv.Itoa(index)})
		tr.putPod(o)
	}
	pending := map[string]any{"phase": "Pending"}
	pod(0, pending)
	pod(1, pending) // nobody's
	held := []any{ended("Completed", "", 0)[0], map[string]any{"name": outputContainer, "state": map[string]any{"running": map[string]any{}}}}
	pod(2, map[string]any{"phase": "Running", "containerStatuses": held}) // nobody fetched its outputs
	pod(3, map[string]any{"phase": "Succeeded", "containerStatuses": ended("Completed", "", 0)})
	tr.follow(first, "job")

	now := time.Now()
	if got := tr.stray(now); len(got) > 0 {
		t.Errorf("%v at once: an attempt may be about to follow them", got)
	}
	got := tr.stray(now.Add(strayLife + time.Second))
	if slices.Sort(got); strings.Join(got, " ") != "p1 p2" {
		t.Errorf("strays are %v", got)
	}
}

// An attempt that waits for its place may have a Job already, of an earlier
// supervisor: deleted as nobody's, it would be made once more, and run twice.
func TestOwnedWhileItWaits(t *testing.T) {
	r := pretended(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	run := runOf(t)
	run.Batch, run.Width, run.Again = 2, 1, true
	other := *run
	leave, ok := r.gates.enter(t.Context(), &other, true)
	if !ok {
		t.Fatal("no place")
	}
	defer leave()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx, run); close(done) }()
	job := recall(run).jobName()
	owned := func() bool {
		r.tracker.mu.Lock()
		defer r.tracker.mu.Unlock()
		return len(r.tracker.owners[job]) > 0
	}
	for end := time.Now().Add(10 * time.Second); !owned(); {
		if time.Now().After(end) {
			t.Fatal("its Job is nobody's while it waits")
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	<-done
}

// What can't be read of the output of a task makes no good end of it.
func TestOutputLost(t *testing.T) {
	r := pretended(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	a := &attempt{Run: runOf(t), r: r}
	if exit := a.finish(t.Context(), &podView{name: "p", exited: true, ended: true, word: "Completed"}); exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "output") {
		t.Errorf("%+v", exit)
	}
	a = &attempt{Run: runOf(t), r: r}
	if exit := a.finish(t.Context(), &podView{name: "p", exited: true, ended: true, word: "Error", code: 3}); exit.Outcome != pcm.OutcomeFailed || exit.Code != 3 {
		t.Errorf("%+v", exit)
	}
}

// A Job of that name that another node made is neither taken for ours nor touched.
func TestForeignJob(t *testing.T) {
	var touched []string
	r := pretended(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch req.Method {
		case http.MethodPost:
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"AlreadyExists","code":409}`)
		case http.MethodGet:
			o := &unstructured.Unstructured{Object: map[string]any{"kind": "Job", "apiVersion": "batch/v1"}}
			o.SetLabels(map[string]string{labelManaged: managed, labelInstance: "i-2"})
			data, _ := o.MarshalJSON()
			w.Write(data)
		default:
			touched = append(touched, req.Method)
		}
	})
	exit := r.Run(t.Context(), runOf(t))
	if exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "not this node's") {
		t.Errorf("%+v", exit)
	}
	r.tracker.mu.Lock()
	defer r.tracker.mu.Unlock()
	if len(touched) > 0 || len(r.tracker.reaped) > 0 {
		t.Errorf("touched: %v, to be deleted: %v", touched, r.tracker.reaped)
	}
}

package kubernetes

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// podOf makes a pod as the cluster would show it.
func podOf(status map[string]any, deleting bool) *unstructured.Unstructured {
	meta := map[string]any{"name": "p", "namespace": "pcm"}
	if deleting {
		meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
	}
	return &unstructured.Unstructured{Object: map[string]any{"metadata": meta, "spec": map[string]any{"nodeName": "n"}, "status": status}}
}

func ended(reason, message string, code int64) []any {
	return []any{map[string]any{"name": taskContainer, "state": map[string]any{"terminated": map[string]any{"exitCode": code, "reason": reason, "message": message}}}}
}

func disrupted(reason string) []any {
	return []any{map[string]any{"type": "DisruptionTarget", "status": "True", "reason": reason}}
}

// How pods end, as real clusters show it.
func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		status   map[string]any
		deleting bool
		asked    bool
		outcome  pcm.Outcome
		code     int
		native   string
		reason   string
	}{
		"done":                 {status: map[string]any{"phase": "Succeeded", "containerStatuses": ended("Completed", "", 0)}, outcome: pcm.OutcomeOK, native: "Completed"},
		"exit code":            {status: map[string]any{"phase": "Failed", "containerStatuses": ended("Error", "", 3)}, outcome: pcm.OutcomeFailed, code: 3, native: "Error", reason: "exit code 3"},
		"out of memory":        {status: map[string]any{"phase": "Failed", "containerStatuses": ended("OOMKilled", "", 137)}, outcome: pcm.OutcomeMemory, code: 137, native: "OOMKilled", reason: "memory limit"},
		"killed by itself":     {status: map[string]any{"phase": "Failed", "containerStatuses": ended("Error", "", 137)}, outcome: pcm.OutcomeFailed, code: 137, native: "Error", reason: "exit code 137"},
		"no program":           {status: map[string]any{"phase": "Failed", "containerStatuses": ended("StartError", "exec: \"x\": executable file not found in $PATH", 128)}, outcome: pcm.OutcomeFailed, code: 127, native: "StartError", reason: "not found"},
		"evicted":              {status: map[string]any{"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}, outcome: pcm.OutcomeSeller, code: 137, native: "Evicted", reason: "low on resource"},
		"evicted while it ran": {status: map[string]any{"phase": "Failed", "reason": "Evicted", "containerStatuses": ended("Error", "", 137), "conditions": disrupted("TerminationByKubelet")}, outcome: pcm.OutcomeSeller, code: 137, native: "TerminationByKubelet", reason: "ended by its node"},
		"preempted":            {status: map[string]any{"phase": "Failed", "containerStatuses": ended("Error", "", 143), "conditions": disrupted("PreemptionByScheduler")}, deleting: true, outcome: pcm.OutcomeSeller, code: 143, native: "PreemptionByScheduler", reason: "priority"},
		"drained, but done":    {status: map[string]any{"phase": "Running", "containerStatuses": ended("Completed", "", 0), "conditions": disrupted("EvictionByEvictionAPI")}, deleting: true, outcome: pcm.OutcomeOK, native: "Completed"},
		"deleted by others":    {status: map[string]any{"phase": "Running", "containerStatuses": ended("Error", "", 143)}, deleting: true, outcome: pcm.OutcomeSeller, code: 143, native: "PodDeleted", reason: "somebody deleted"},
		"asked to end":         {status: map[string]any{"phase": "Running", "containerStatuses": ended("Error", "", 143)}, deleting: true, asked: true, outcome: pcm.OutcomeFailed, code: 143, native: "Error", reason: "exit code 143"},
		"over its time":        {status: map[string]any{"phase": "Failed", "reason": "DeadlineExceeded"}, outcome: pcm.OutcomeTimeLimit, code: 137, native: "DeadlineExceeded", reason: "time limit"},
		"not admitted":         {status: map[string]any{"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"}, outcome: pcm.OutcomeSeller, code: 137, native: "OutOfcpu", reason: "no CPU left"},
		"something new":        {status: map[string]any{"phase": "Failed", "reason": "Abducted"}, outcome: pcm.OutcomeSeller, code: 137, native: "Abducted", reason: "Abducted"},
	} {
		p, err := viewPod(podOf(c.status, c.deleting))
		if err != nil || !p.ended && !p.exited {
			t.Errorf("%s: %+v, %v", name, p, err)
			continue
		}
		e := verdict(p, c.asked)
		if e.Outcome != c.outcome || e.Code != c.code || e.Native != c.native || !strings.Contains(e.Reason, c.reason) || (e.Reason == "") != (c.outcome == pcm.OutcomeOK) {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// What pods wait for, as real clusters show it.
func TestWaiting(t *testing.T) {
	waiting := func(reason string) []any {
		return []any{map[string]any{"name": taskContainer, "state": map[string]any{"waiting": map[string]any{"reason": reason, "message": "m"}}}}
	}
	for word, status := range map[string]map[string]any{
		"Unschedulable":              {"phase": "Pending", "conditions": []any{map[string]any{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}}},
		"Pending":                    {"phase": "Pending"},
		"ContainerCreating":          {"phase": "Pending", "containerStatuses": waiting("ContainerCreating")},
		"ImagePullBackOff":           {"phase": "Pending", "containerStatuses": waiting("ImagePullBackOff")},
		"CreateContainerConfigError": {"phase": "Pending", "containerStatuses": waiting("CreateContainerConfigError")},
		"PodInitializing": {"phase": "Pending", "containerStatuses": waiting("PodInitializing"),
			"initContainerStatuses": []any{map[string]any{"name": inputContainer, "state": map[string]any{"running": map[string]any{}}}}},
	} {
		p, err := viewPod(podOf(status, false))
		if err != nil || p.word != word || p.ended || p.started || states.Of(word).State != adapters.Pending || states.Of(word).Reason == "" {
			t.Errorf("%s: %+v, %v, %+v", word, p, err, states.Of(word))
		}
	}
}

func TestStatesAreComplete(t *testing.T) {
	for word, n := range states {
		if n.State == adapters.Ended && n.Outcome == "" || n.State != adapters.Ended && n.Outcome != "" || len(word) > 64 {
			t.Errorf("%s: %+v", word, n)
		}
		if n.Reason == "" && n.Outcome != pcm.OutcomeOK && n.Outcome != pcm.OutcomeFailed && n.State != adapters.Running {
			t.Errorf("%s has no reason", word)
		}
	}
}

func TestUse(t *testing.T) {
	for note, want := range map[string]struct {
		cpu    int64
		memory pcm.Bytes
	}{
		"pcm-use memory=1048576 cpu=usage_usec 2500000\n": {2500, 1 << 20},
		"pcm-use memory=4096 cpu=7000000\n":               {7, 4096},
		"pcm-use memory= cpu=\n":                          {},
		"pcm-use memory=-5 cpu=usage_usec -7":             {},
		"pcm-use memory=99999999999999999999 cpu=x":       {},
		"something else":                                  {},
	} {
		if cpu, memory := use(note); cpu != want.cpu || memory != want.memory {
			t.Errorf("%q: %d ms, %d bytes", note, cpu, memory)
		}
	}
}

func TestIndexes(t *testing.T) {
	for i, want := range []bool{false, true, false, true, true, true, false} {
		if within("1,3-5", i) != want || within("", i) || within("x-,-", i) {
			t.Errorf("index %d", i)
		}
	}
}

// A stream from a pod can hold anything.
func TestUnpackHostile(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("of the node"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	try := func(most int64, headers ...tar.Header) error {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Mode = 0o777
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return unpackInto(root, &b, most)
	}
	file := func(name string, size int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for name, headers := range map[string][]tar.Header{
		"above":           {file("../x", 1)},
		"absolute":        {file("/etc/x", 1)},
		"through a link":  {link("l", filepath.Dir(outside)), file("l/secret", 1)},
		"a link upwards":  {link("u", ".."), file("u/x", 1)},
		"hard link out":   {{Typeflag: tar.TypeLink, Name: "h", Linkname: "../../etc/passwd"}},
		"hard link there": {{Typeflag: tar.TypeLink, Name: "h", Linkname: outside}},
	} {
		if err := try(1<<20, headers...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "of the node" {
		t.Errorf("outside: %q, %v", data, err)
	}
	if err := try(100, file("big", 1000)); !errors.Is(err, errTooMuch) {
		t.Errorf("too much: %v", err)
	}
	if err := try(1<<20, tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"}, file("d/ok", 5)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "fifo")); err == nil {
		t.Error("a pipe was made")
	}
	if info, err := os.Stat(filepath.Join(dir, "d/ok")); err != nil || info.Size() != 5 || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestImages(t *testing.T) {
	s := Settings{Images: []string{"debian:12", "registry.example.org/team/*", "localhost/**"}}
	for image, want := range map[string]bool{
		"debian:12": true, "debian:13": false, "registry.example.org/team/a:1": true, "registry.example.org/team/a/b": false,
		"registry.example.org/other/a": false, "localhost/a/b/c:1": true, "localhost/../x": false, "": false,
	} {
		if s.MatchImage(image) != want {
			t.Errorf("%q", image)
		}
	}
}

// A Job may not run its task twice, gain rights or expand what the task says.
func TestJob(t *testing.T) {
	s := Settings{Instance: "i"}
	s.Defaults()
	k := adapters.Key{Trade: pcm.NewTradeID(pcm.NewJobID(), 1), Index: 7, Attempt: 2}
	task := adapters.Task{Key: k, Command: []string{"echo", "$(HOME) $$"}, Env: map[string]string{"X": "$(PATH)"}, Outputs: []string{"o"}, Resources: pcm.Resources{CPU: 500, Memory: 1 << 20}}
	u := unstructured.Unstructured{Object: s.job(task, array{first: k, n: 1})}
	str := func(path ...string) any {
		v, _, err := unstructured.NestedFieldNoCopy(u.Object, path...)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if str("spec", "backoffLimit") != int64(0) || str("spec", "template", "spec", "restartPolicy") != "Never" || str("spec", "podReplacementPolicy") != "Failed" {
		t.Error("it may run twice")
	}
	if str("spec", "template", "spec", "securityContext", "runAsNonRoot") != true || str("spec", "template", "spec", "automountServiceAccountToken") != false {
		t.Error("it has too many rights")
	}
	main := str("spec", "template", "spec", "containers").([]any)[0].(map[string]any)
	if got := main["command"].([]any)[1]; got != "$$(HOME) $$$$" {
		t.Errorf("command %q", got)
	}
	if !slices.ContainsFunc(main["env"].([]any), func(e any) bool {
		m := e.(map[string]any)
		return m["name"] == "X" && m["value"] == "$$(PATH)"
	}) {
		t.Errorf("env %v", main["env"])
	}
	if name := (array{first: k, n: 1}).jobName(); len(name) > 63-len("-xxxxx") || name != (array{first: k, n: 1, width: 5}).jobName() {
		t.Errorf("name %q", name)
	}
	g := array{first: adapters.Key{Trade: k.Trade, Index: 3, Attempt: 2}, n: 10, width: 4}
	u.Object = s.job(task, g)
	if str("spec", "completions") != int64(10) || str("spec", "parallelism") != int64(4) || str("spec", "backoffLimitPerIndex") != int64(0) || str("spec", "completionMode") != "Indexed" {
		t.Errorf("array: %v", u.Object["spec"])
	}
	u.SetAnnotations(map[string]string{noteArray: g.first.String(), noteIndex: "4"})
	if got, err := keyOf(&u); err != nil || got != k {
		t.Errorf("key %v, %v", got, err)
	}
}

// No task has more than one node, however many the cluster has.
func TestLargest(t *testing.T) {
	a := &Adapter{}
	none := amounts{-1, -1, -1, -1}
	one := share{nodes: 1, amounts: amounts{4000, 8 << 30, 0, 110}, largest: amounts{4000, 8 << 30, 0, 110}}
	if p, ok := a.pool(one, none, supervisor.Facts{Sandbox: "container"}); !ok || p.Largest != nil {
		t.Errorf("%+v", p)
	}
	many := share{nodes: 3, amounts: amounts{12_000, 24 << 30, 0, 330}, largest: one.largest}
	if p, ok := a.pool(many, none, supervisor.Facts{Sandbox: "container"}); !ok || p.Largest == nil || *p.Largest != (pcm.Resources{CPU: 4000, Memory: 8 << 30}) {
		t.Errorf("%+v", p)
	}
}

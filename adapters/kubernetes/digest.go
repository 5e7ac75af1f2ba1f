package kubernetes

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// What we read of pods and Jobs. Everything else is dropped as it comes.
type wirePod struct {
	Metadata struct {
		Name, Namespace, DeletionTimestamp, CreationTimestamp string
		Labels, Annotations                                   map[string]string
	}
	Spec struct {
		NodeName       string
		InitContainers []wireContainer
		Containers     []wireContainer
	}
	Status struct {
		Phase, Reason, Message string
		Conditions             []condition
		InitContainerStatuses  []containerStatus
		ContainerStatuses      []containerStatus
	}
}

type wireContainer struct {
	Name      string
	Resources struct{ Requests map[string]any }
}

type condition struct{ Type, Status, Reason, Message string }

type containerStatus struct {
	Name  string
	State struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt string }
		Terminated *struct {
			ExitCode                               int
			Signal                                 int
			Reason, Message, StartedAt, FinishedAt string
		}
	}
}

type wireJob struct {
	Metadata struct {
		Name, DeletionTimestamp string
		Labels, Annotations     map[string]string
	}
	Spec   struct{ Suspend bool }
	Status struct {
		Conditions                      []condition
		FailedIndexes, CompletedIndexes string
	}
}

// decode reads what v has fields for.
func decode(o *unstructured.Unstructured, v any) error {
	data, err := json.Marshal(o.Object)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// podView is what is kept of a pod.
type podView struct {
	name, node string
	created    string
	deleting   bool
	disrupted  string // reason of its condition DisruptionTarget
	phase      string
	word       string // the native word that says most
	message    string
	ready      bool // the helper waits for inputs
	started    bool // the task runs or ran
	ended      bool // the task's container, or the pod before it
	exited     bool // there is an exit code
	code       int
	note       string // termination message
	holding    bool   // the helper that keeps the outputs runs
	silent     bool   // its node does not answer
}

func viewPod(o *unstructured.Unstructured) (*podView, error) {
	var w wirePod
	if err := decode(o, &w); err != nil {
		return nil, err
	}
	v := &podView{
		name: strings.Clone(w.Metadata.Name), node: strings.Clone(w.Spec.NodeName), created: w.Metadata.CreationTimestamp,
		deleting: w.Metadata.DeletionTimestamp != "", phase: w.Status.Phase, word: w.Status.Phase,
	}
	// Of a node that is silent the cluster only takes the pod's readiness back.
	var unready, whole bool
	for _, c := range w.Status.Conditions {
		switch {
		case c.Type == "Ready":
			unready = c.Status == "False" || c.Status == "Unknown"
		case c.Type == "ContainersReady":
			whole = c.Status == "True"
		case c.Type == "DisruptionTarget" && c.Status == "True":
			v.disrupted = c.Reason
		case c.Type == "PodScheduled" && c.Status == "False" && v.phase == "Pending":
			v.word, v.message = c.Reason, c.Message
		}
	}
	for _, c := range w.Status.InitContainerStatuses {
		switch {
		case c.State.Running != nil:
			v.word, v.ready = "PodInitializing", true
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			v.word, v.message = c.State.Waiting.Reason, c.State.Waiting.Message
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			v.word, v.message = "InitContainerFailed", c.State.Terminated.Message
		}
	}
	for _, c := range w.Status.ContainerStatuses {
		switch {
		case c.Name == outputContainer:
			v.holding = c.State.Running != nil
		case c.Name != taskContainer:
		case c.State.Running != nil:
			v.started, v.word, v.message = true, "Running", ""
		case c.State.Terminated != nil:
			t := c.State.Terminated
			v.started, v.ended, v.exited = true, true, true
			v.code, v.word, v.message, v.note = t.ExitCode, t.Reason, t.Message, t.Message
			if t.Reason == "ContainerStatusUnknown" {
				v.exited = false
			}
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			v.word, v.message = c.State.Waiting.Reason, c.State.Waiting.Message
		}
	}
	if v.phase == "Failed" && !v.exited {
		v.ended = true
		if v.word != "InitContainerFailed" {
			v.word = "Failed"
		}
	}
	v.silent = unready && whole && v.started && !v.ended
	if w.Status.Reason != "" && (v.phase == "Failed" || w.Status.Reason == "NodeLost") {
		v.word, v.message = w.Status.Reason, w.Status.Message
	}
	return v, nil
}

// jobView is what is kept of a Job.
type jobView struct {
	suspended     bool
	deleting      bool
	failed        string // reason
	message       string
	complete      bool
	failedIndexes string
	first         adapters.Key
	n             int
}

func viewJob(o *unstructured.Unstructured) (*jobView, error) {
	var w wireJob
	if err := decode(o, &w); err != nil {
		return nil, err
	}
	v := &jobView{suspended: w.Spec.Suspend, deleting: w.Metadata.DeletionTimestamp != "", failedIndexes: w.Status.FailedIndexes, n: 1}
	for _, c := range w.Status.Conditions {
		switch {
		case c.Status != "True":
		case c.Type == "Failed" || c.Type == "FailureTarget":
			v.failed, v.message = c.Reason, c.Message
		case c.Type == "Complete":
			v.complete = true
		}
	}
	key := w.Metadata.Annotations[noteKey]
	if first := w.Metadata.Annotations[noteArray]; first != "" {
		n, err := strconv.Atoi(w.Metadata.Annotations[noteSize])
		if err != nil || n < 2 || n > pcm.MaxBatch {
			return nil, pcm.Errorf(pcm.Invalid, "array of %q attempts", w.Metadata.Annotations[noteSize])
		}
		key, v.n = first, n
	}
	var err error
	v.first, err = adapters.ParseKey(key)
	return v, err
}

// keyOf tells whose a pod is.
func keyOf(o *unstructured.Unstructured) (adapters.Key, error) {
	notes := o.GetAnnotations()
	first := notes[noteArray]
	if first == "" {
		return adapters.ParseKey(notes[noteKey])
	}
	k, err := adapters.ParseKey(first)
	if err != nil {
		return k, err
	}
	i, err := strconv.Atoi(notes[noteIndex])
	if err != nil || i < 0 || i >= pcm.MaxBatch {
		return k, pcm.Errorf(pcm.Invalid, "index %q in an array", notes[noteIndex])
	}
	k.Index += i
	return k, nil
}

// within tells whether a list of indexes like "1,3-5" holds i.
func within(list string, i int) bool {
	for part := range strings.SplitSeq(list, ",") {
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 == nil && err2 == nil && a <= i && i <= b {
			return true
		}
	}
	return false
}

// use reads what the launcher said: CPU time in ms, peak of memory.
func use(note string) (cpu int64, memory pcm.Bytes) {
	i := strings.LastIndex(note, "pcm-use ")
	if i < 0 {
		return 0, 0
	}
	fields := note[i+len("pcm-use "):]
	if _, rest, ok := strings.Cut(fields, "memory="); ok {
		word, _, _ := strings.Cut(rest, " ")
		if n, err := strconv.ParseInt(strings.TrimSpace(word), 10, 64); err == nil && n > 0 && n < 4<<50 {
			memory = pcm.Bytes(n)
		}
	}
	if _, rest, ok := strings.Cut(fields, "cpu="); ok {
		rest = strings.TrimSpace(rest)
		if us, ok := strings.CutPrefix(rest, "usage_usec "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(us), 10, 64); err == nil && n > 0 {
				cpu = n / 1000
			}
		} else if n, err := strconv.ParseInt(rest, 10, 64); err == nil && n > 0 {
			cpu = time.Duration(n).Milliseconds()
		}
	}
	return cpu, memory
}

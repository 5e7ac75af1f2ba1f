package kubernetes

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// How our objects are known.
const (
	labelManaged  = "app.kubernetes.io/managed-by"
	managed       = "pcm"
	labelInstance = "pcm.jointcloud/instance"
	labelKey      = "pcm.jointcloud/key"   // hash of the attempt's key; not on pods of arrays
	labelTrade    = "pcm.jointcloud/trade" // of pods, also in arrays
	labelNetwork  = "pcm.jointcloud/network"
	noteKey       = "pcm.jointcloud/attempt" // annotation: the key of an attempt
	noteArray     = "pcm.jointcloud/array"   // annotation: the key of an array's first attempt
	noteSize      = "pcm.jointcloud/array-size"
	noteIndex     = "batch.kubernetes.io/job-completion-index"
	labelJob      = "batch.kubernetes.io/job-name"
)

// The containers of a pod, and where things are in them.
const (
	taskContainer   = "task"
	inputContainer  = "inputs"  // takes the inputs, then ends
	outputContainer = "outputs" // stays until the outputs were fetched
	workDir         = "/pcm/work"
	inputDir        = "/pcm/in"
	toolDir         = "/pcm/bin"
	busybox         = toolDir + "/busybox"
	markReady       = inputDir + "/.ready"
)

// receive is what the first helper does: it brings its shell, which is busybox, then
// waits for the inputs.
const receive = `trap 'exit 143' TERM
cp /proc/$$/exe ` + busybox + ` || exit 1
[ "$1" = wait ] || exit 0
while [ ! -e ` + markReady + ` ]; do sleep 0.1; done`

// hold is what the other helper does: it stays, also while its pod is being
// ended, until it is told that the outputs were fetched.
const hold = `trap '' TERM
trap 'exit 0' USR1
while :; do sleep 3600 & wait $!; done`

// launch runs the task and says at its end what it used. Its only words are the
// shell's own. The task can write the same file: the use is what the seller
// shows, and the wall time, by which it is paid, is not taken from here.
const launch = `"$@" <&0 & c=$!
trap 'kill -TERM $c' TERM
while :; do wait $c; r=$?; kill -0 $c 2>/dev/null || break; done
u() { for f; do [ -r $f ] && read -r x < $f && echo "$x" && return; done; }
echo "pcm-use memory=$(u /sys/fs/cgroup/memory.peak /sys/fs/cgroup/memory/memory.max_usage_in_bytes) cpu=$(u /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpuacct/cpuacct.usage /sys/fs/cgroup/cpu,cpuacct/cpuacct.usage)" 2>/dev/null > /dev/termination-log
exit $r`

// place tells a task of an array its index, which the cluster counts from 0.
const place = `PCM_TASK_INDEX=$((PCM_FIRST_INDEX + PCM_TASK_INDEX))
export PCM_TASK_INDEX PCM_ATTEMPT="$PCM_TRADE.$PCM_TASK_INDEX.$PCM_TRY"
unset PCM_FIRST_INDEX PCM_TRADE PCM_TRY
`

type object = map[string]any

// hash names an object after a key, short enough for a label and a host name.
func hash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:15]))
}

// array is a group of attempts that come as one Job.
type array struct {
	first adapters.Key
	n     int
	width int
}

func (g array) single() bool { return g.n == 1 }

// jobName is the name of the Job of one attempt or of an array.
func (g array) jobName() string {
	if g.single() {
		return "pcm-" + hash(g.first.String())
	}
	return "pcm-" + hash(fmt.Sprintf("%s+%d", g.first, g.n))
}

// helped tells whether the pod begins with the helper.
func (s Settings) helped(t adapters.Task, g array) bool {
	return s.Measure || len(t.Inputs) > 0 || !g.single() && g.first.Index != 0
}

// job makes the Job of an attempt, or of an array of which t is one.
func (s Settings) job(t adapters.Task, g array) object {
	labels := object{labelManaged: managed, labelInstance: s.Instance, labelTrade: string(t.Trade)}
	notes := object{}
	spec := object{
		"backoffLimit": int64(0), "podReplacementPolicy": "Failed", "ttlSecondsAfterFinished": int64(keepEnded / time.Second),
		"completions": int64(1), "parallelism": int64(1),
	}
	if g.single() {
		labels[labelKey] = hash(g.first.String())
		notes[noteKey] = g.first.String()
	} else {
		notes[noteArray], notes[noteSize] = g.first.String(), strconv.Itoa(g.n)
		delete(spec, "backoffLimit")
		spec["backoffLimitPerIndex"] = int64(0)
		spec["maxFailedIndexes"] = int64(g.n)
		spec["completionMode"] = "Indexed"
		spec["completions"], spec["parallelism"] = int64(g.n), int64(max(1, min(g.width, g.n)))
	}
	spec["template"] = object{"metadata": object{"labels": withNetwork(labels, t.Network), "annotations": notes}, "spec": s.pod(t, g)}
	return object{
		"apiVersion": "batch/v1", "kind": "Job",
		"metadata": object{"name": g.jobName(), "labels": labels, "annotations": notes}, "spec": spec,
	}
}

// keepEnded is how long the cluster keeps an ended Job that nobody collects.
const keepEnded = 24 * time.Hour

func withNetwork(labels object, network bool) object {
	all := object{}
	for k, v := range labels {
		all[k] = v
	}
	if all[labelNetwork] = "none"; network {
		all[labelNetwork] = "allowed"
	}
	return all
}

func (s Settings) pod(t adapters.Task, g array) object {
	helped := s.helped(t, g)
	image := t.Image
	if image == "" {
		image = s.DefaultImage
	}
	command := append(append([]string{}, t.Command...), t.Args...)
	mounts := []any{object{"name": "work", "mountPath": workDir}}
	volumes := []any{object{"name": "work", "emptyDir": object{}}}
	if helped {
		script := launch
		if !g.single() {
			script = place + launch
		}
		command = append([]string{busybox, "sh", "-c", script, "pcm"}, command...)
		mounts = append(mounts, object{"name": "bin", "mountPath": toolDir, "readOnly": true})
		volumes = append(volumes, object{"name": "bin", "emptyDir": object{}})
	}
	if len(t.Inputs) > 0 {
		volumes = append(volumes, object{"name": "in", "emptyDir": object{}})
	}
	for i, in := range t.Inputs {
		mounts = append(mounts, object{"name": "in", "mountPath": path.Join(workDir, path.Clean(in.Target)), "subPath": strconv.Itoa(i), "readOnly": true})
	}
	main := object{
		"name": taskContainer, "image": image, "imagePullPolicy": s.PullPolicy, "command": literal(command), "workingDir": workDir, "env": environment(t, g, helped),
		"volumeMounts": mounts, "resources": s.resources(t), "securityContext": contained(), "terminationMessagePolicy": "File",
	}
	if t.Port > 0 {
		main["ports"] = []any{object{"containerPort": int64(t.Port)}}
	}
	spec := object{
		"restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
		"terminationGracePeriodSeconds": int64(grace / time.Second),
		"containers":                    []any{main}, "volumes": volumes,
		"securityContext": object{
			"runAsNonRoot": true, "runAsUser": s.User, "runAsGroup": s.User, "fsGroup": s.User, "seccompProfile": object{"type": "RuntimeDefault"},
		},
	}
	if helped {
		mode := "go"
		own := []any{object{"name": "bin", "mountPath": toolDir}, object{"name": "work", "mountPath": workDir}}
		if len(t.Inputs) > 0 {
			mode = "wait"
			own = append(own, object{"name": "in", "mountPath": inputDir})
		}
		spec["initContainers"] = []any{s.helper(inputContainer, own, "sh", "-c", receive, "pcm", mode)}
	}
	if len(t.Outputs) > 0 {
		own := []any{object{"name": "work", "mountPath": workDir}}
		spec["containers"] = []any{main, s.helper(outputContainer, own, "sh", "-c", hold)}
	}
	// The supervisor holds limit and lease. This is for the time when there is none.
	if t.Limit > 0 {
		spec["activeDeadlineSeconds"] = int64((t.Limit + s.PullLimit + backstop) / time.Second)
	}
	for key, v := range map[string]string{"serviceAccountName": s.ServiceAccount, "priorityClassName": s.PriorityClass, "runtimeClassName": s.RuntimeClass} {
		if v != "" {
			spec[key] = v
		}
	}
	if len(s.NodeSelector) > 0 {
		sel := object{}
		for k, v := range s.NodeSelector {
			sel[k] = v
		}
		spec["nodeSelector"] = sel
	}
	var tolerations, secrets []any
	for _, tol := range s.Tolerations {
		o := object{}
		for k, v := range map[string]string{"key": tol.Key, "operator": tol.Operator, "value": tol.Value, "effect": tol.Effect} {
			if v != "" {
				o[k] = v
			}
		}
		tolerations = append(tolerations, o)
	}
	for _, name := range s.PullSecrets {
		secrets = append(secrets, object{"name": name})
	}
	if tolerations != nil {
		spec["tolerations"] = tolerations
	}
	if secrets != nil {
		spec["imagePullSecrets"] = secrets
	}
	return spec
}

const (
	grace    = 30 * time.Second // what a pod gets that the cluster ends
	backstop = 10 * time.Minute
)

// contained keeps a container from gaining rights.
func contained() object {
	return object{"allowPrivilegeEscalation": false, "capabilities": object{"drop": []any{"ALL"}}, "privileged": false}
}

func (s Settings) helper(name string, mounts []any, command ...string) object {
	few := object{"cpu": "10m", "memory": "16Mi"}
	c := contained()
	c["readOnlyRootFilesystem"] = true
	return object{
		"name": name, "image": s.HelperImage, "imagePullPolicy": s.PullPolicy, "command": literal(command), "volumeMounts": mounts, "securityContext": c,
		"resources": object{"requests": few, "limits": object{"memory": "64Mi"}},
	}
}

// resources asks for exactly what was sold.
func (s Settings) resources(t adapters.Task) object {
	all, r := object{}, t.Resources
	if r.CPU > 0 {
		all["cpu"] = fmt.Sprintf("%dm", r.CPU)
	}
	if r.Memory > 0 {
		all["memory"] = strconv.FormatInt(int64(r.Memory), 10)
	}
	if r.GPU > 0 {
		name, _ := s.resourceOf(t.Pool)
		all[name] = strconv.FormatInt(r.GPU, 10)
	}
	return object{"requests": all, "limits": all}
}

// poolOf names the pool of nodes that have an accelerator's resource; "" is none.
func poolOf(resource string) pcm.PoolID {
	if resource == "" {
		return Name
	}
	return pcm.PoolID(Name + "-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(resource)))
}

// known are the resources that count as accelerators, most wanted first.
func (s Settings) known() []string {
	if s.Accelerator != "" {
		return append([]string{s.Accelerator}, accelerators...)
	}
	return accelerators
}

// resourceOf is the accelerator's resource of a pool that poolOf names. Tasks of
// no known pool get the one that is configured.
func (s Settings) resourceOf(pool pcm.PoolID) (string, bool) {
	for _, r := range s.known() {
		if poolOf(r) == pool {
			return r, true
		}
	}
	return s.Accelerator, s.Accelerator != ""
}

// literal keeps the cluster from expanding $(NAME).
func literal(words []string) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = strings.ReplaceAll(w, "$", "$$")
	}
	return out
}

// environment is the task's. In an array the index comes from the cluster.
func environment(t adapters.Task, g array, helped bool) []any {
	var env []any
	add := func(k, v string) { env = append(env, object{"name": k, "value": v}) }
	if !g.single() {
		env = append(env, object{"name": "PCM_TASK_INDEX", "valueFrom": object{"fieldRef": object{"fieldPath": "metadata.annotations['" + noteIndex + "']"}}})
		if helped {
			add("PCM_FIRST_INDEX", strconv.Itoa(g.first.Index))
			add("PCM_TRADE", string(g.first.Trade))
			add("PCM_TRY", strconv.Itoa(g.first.Attempt))
		} else {
			add("PCM_ATTEMPT", fmt.Sprintf("%s.$(PCM_TASK_INDEX).%d", g.first.Trade, g.first.Attempt))
		}
	}
	list := supervisor.Environ(t, workDir, "")
	sort.Strings(list)
	for _, e := range list {
		k, v, _ := strings.Cut(e, "=")
		if k == "PATH" && t.Env["PATH"] == "" {
			continue // the image's own
		}
		if !g.single() && (k == "PCM_TASK_INDEX" || k == "PCM_ATTEMPT") {
			continue
		}
		add(k, strings.ReplaceAll(v, "$", "$$"))
	}
	return env
}

package rest

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// owner is what the names of all jobs of a node begin with.
func owner(instance string) string {
	sum := sha256.Sum256([]byte(instance))
	return "pcm-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// jobName is the name of an attempt's job: that of no other attempt of any node.
func jobName(instance string, k adapters.Key) string {
	name := owner(instance) + "-" + strings.TrimPrefix(string(k.Trade), "trd-") + "-" + strconv.Itoa(k.Index) + "-" + strconv.Itoa(k.Attempt)
	if len(name) <= 63 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return owner(instance) + "-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20]))
}

// taskVars is what task stands for.
func (b *backend) taskVars(n *note) map[string]any {
	t := n.Task
	env := map[string]string{}
	for _, v := range environ(t) {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	out := description.Task{
		Key: t.Key.String(), Name: jobName(b.cfg.Instance, t.Key), Owner: owner(b.cfg.Instance), Instance: b.cfg.Instance,
		Job: string(t.Job), Trade: string(t.Trade), Pool: string(t.Pool), Index: t.Index, Count: t.Count, Attempt: t.Attempt,
		Command: append(append([]string{}, t.Command...), t.Args...), Image: t.Image, Env: env, Network: t.Network, Port: t.Port,
		CPU: float64(t.Resources.CPU) / 1000, MilliCPU: int64(t.Resources.CPU), Memory: int64(t.Resources.Memory),
		Disk: int64(t.Resources.Disk), GPU: t.Resources.GPU, Seconds: int64((t.Limit + time.Second - 1) / time.Second),
		Inputs: []description.Input{}, Outputs: []string{}, OutputCap: int64(t.OutputCap), Script: n.Script,
		ScriptURL: n.Link, Let: n.Let, Step: n.Step,
	}
	out.Array = description.Array{Name: out.Name, Count: 1}
	if n.Array != nil && !n.Alone {
		out.Array = *n.Array
	}
	for i, in := range t.Inputs {
		info, err := os.Stat(in.Path)
		out.Inputs = append(out.Inputs, description.Input{Index: i, Target: path.Clean(in.Target), Folder: err == nil && info.IsDir()})
	}
	for _, o := range t.Outputs {
		out.Outputs = append(out.Outputs, path.Clean(o))
	}
	vars, _ := plainOf(out).(map[string]any)
	for _, k := range []string{"let", "step"} {
		if vars[k] == nil {
			vars[k] = map[string]any{}
		}
	}
	return vars
}

// plainOf is a value as expressions take it.
func plainOf(v any) any {
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var out any
	if d.Decode(&out) != nil {
		return nil
	}
	return expr.Plain(out)
}

func plain(m map[string]any) {
	for k := range m {
		m[k] = expr.Plain(m[k])
	}
}

// vars are those of all calls for the attempt.
func (b *backend) vars(n *note) map[string]any {
	data := n.Data
	if data == nil {
		data = map[string]any{}
	}
	return map[string]any{"settings": b.settings, "pool": n.Pool, "task": b.taskVars(n), "data": data, "id": n.ID, "job": nil}
}

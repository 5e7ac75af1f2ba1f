package rules

import (
	"reflect"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
)

// What expressions may speak of. The fields have their JSON names there. What is
// secret of a job, the values of its environment and the arguments of its command, is
// not among them.

// Job is one step of a job.
type Job struct {
	Name      string            `json:"name" doc:"of the job"`
	Step      string            `json:"step" doc:"name of the step"`
	Count     int               `json:"count" doc:"tasks of the step"`
	Program   string            `json:"program" doc:"first word of the command; of a module its file's name"`
	Module    bool              `json:"module" doc:"whether it is a WebAssembly module"`
	Image     string            `json:"image" doc:"container image"`
	Env       []string          `json:"env" doc:"names of environment variables"`
	Inputs    []Input           `json:"inputs" doc:"what the tasks read: source and target of each"`
	Outputs   []string          `json:"outputs" doc:"what comes back"`
	Labels    map[string]string `json:"labels" doc:"that the job wants of a pool"`
	Class     string            `json:"class" doc:"of pool that the job names"`
	Adapter   string            `json:"adapter" doc:"that the job names"`
	CPU       float64           `json:"cpu" doc:"cores of one task"`
	Memory    Size              `json:"memory" doc:"bytes of one task"`
	GPU       int64             `json:"gpu" doc:"accelerators of one task"`
	Disk      Size              `json:"disk" doc:"bytes of one task"`
	TimeLimit int64             `json:"time_limit" doc:"seconds of one attempt at most"`
	Network   bool              `json:"network" doc:"whether tasks want the network"`
	Service   bool              `json:"service" doc:"whether tasks are replicas of a service"`
	Takeover  string            `json:"takeover" doc:"who may drive it on: account, any or none"`
	Strategy  string            `json:"strategy" doc:"by which the buyer chooses among offers"`
}

// Input is one of a job's inputs.
type Input struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// Buyer is who pays, and the peer that drives the job.
type Buyer struct {
	Account string            `json:"account" doc:"ID of the account that pays"`
	Peer    string            `json:"peer" doc:"ID of the peer that places the tasks"`
	Name    string            `json:"name" doc:"that peer's name; anybody may take any"`
	Labels  map[string]string `json:"labels" doc:"of that peer, by its passport"`
	Own     bool              `json:"own" doc:"whether the account is the seller's own"`
}

// Standing is what the ledger knows of the buyer's account and the seller's.
type Standing struct {
	Owed     float64 `json:"owed" doc:"what the buyer owes, in whole units; below zero: is owed"`
	Held     float64 `json:"held" doc:"what its open tasks may cost beside that"`
	Credit   float64 `json:"credit" doc:"the most that it may owe"`
	Tasks    int     `json:"tasks" doc:"tasks at once that it has reserved in the pool"`
	Disputes int     `json:"disputes" doc:"open disputes of its tasks with the seller"`
}

// Pool is what is sold.
type Pool struct {
	ID      string            `json:"id" doc:"its name, as pcm pool list has it"`
	Adapter string            `json:"adapter" doc:"that runs its tasks, like process or slurm"`
	Class   string            `json:"class" doc:"of its hardware, if its seller names one"`
	Sandbox string            `json:"sandbox" doc:"what keeps tasks in; none: nothing does"`
	Labels  map[string]string `json:"labels" doc:"of the peer and of the pool"`
	CPU     float64           `json:"cpu" doc:"cores, as a whole"`
	Memory  Size              `json:"memory" doc:"bytes, as a whole"`
	GPU     int64             `json:"gpu" doc:"accelerators, as a whole"`
	Disk    Size              `json:"disk" doc:"bytes, as a whole"`
	Slots   int               `json:"slots" doc:"tasks at once"`
}

// Peer is one with which data are exchanged.
type Peer struct {
	ID      string            `json:"id" doc:"of the peer"`
	Account string            `json:"account" doc:"ID of its account"`
	Name    string            `json:"name" doc:"anybody may take any"`
	Labels  map[string]string `json:"labels" doc:"by its passport"`
	Flow    string            `json:"flow" doc:"in: inputs come from it; out: results go to it"`
}

// Time is the seller's clock.
type Time struct {
	Hour    int    `json:"hour" doc:"0 to 23"`
	Minute  int    `json:"minute" doc:"0 to 59"`
	Weekday string `json:"weekday" doc:"mon, tue, wed, thu, fri, sat or sun"`
	Date    string `json:"date" doc:"like 2026-11-29"`
	Zone    string `json:"zone" doc:"like UTC or CET"`
}

// Size is bytes; in a file also "8GiB".
type Size int64

// UnmarshalText is pcm.ParseBytes.
func (s *Size) UnmarshalText(text []byte) error {
	b, err := pcm.ParseBytes(string(text))
	*s = Size(b)
	return err
}

// Facts are all of it, as examples give them.
type Facts struct {
	Job      Job      `json:"job"`
	Buyer    Buyer    `json:"buyer"`
	Standing Standing `json:"standing"`
	Pool     Pool     `json:"pool"`
	Peer     Peer     `json:"peer" doc:"only in rules that say data"`
	Time     Time     `json:"time" doc:"only in private rules"`
}

// Constants of expressions.
var constants = map[string]any{"KiB": int64(1 << 10), "MiB": int64(1 << 20), "GiB": int64(1 << 30), "TiB": int64(1 << 40)}

// fields lists the fields of each variable.
var fields = func() map[string][]string {
	m := map[string][]string{}
	t := reflect.TypeFor[Facts]()
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("json")
		for k := range t.Field(i).Type.NumField() {
			m[name] = append(m[name], t.Field(i).Type.Field(k).Tag.Get("json"))
		}
	}
	return m
}()

// value is a fact as expressions take it.
func value(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Struct:
		m := make(map[string]any, v.NumField())
		for i := range v.NumField() {
			m[v.Type().Field(i).Tag.Get("json")] = value(v.Field(i))
		}
		return m
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = value(v.Index(i))
		}
		return list
	case reflect.Map:
		m := make(map[string]any, v.Len())
		for it := v.MapRange(); it.Next(); {
			m[it.Key().String()] = it.Value().String()
		}
		return m
	case reflect.Int, reflect.Int64:
		return v.Int()
	}
	return v.Interface()
}

// Variable is one fact, made ready for expressions.
type Variable map[string]any

// Of makes one of Job, Buyer, Standing, Pool, Peer or Time.
func Of(fact any) Variable { return value(reflect.ValueOf(fact)).(map[string]any) }

// JobOf is what rules see of a step.
func JobOf(name string, st pcm.Step, each pcm.Resources, s pcm.Spec) Job {
	j := Job{
		Name: name, Step: st.Name, Count: st.Count, Module: st.Module != "", Image: st.Image, Outputs: st.Outputs,
		Labels: st.Labels, Class: st.Class, Adapter: st.Adapter, CPU: cores(each.CPU), Memory: Size(each.Memory), GPU: each.GPU, Disk: Size(each.Disk),
		TimeLimit: st.Limit().Milliseconds() / 1000, Network: st.Network, Service: st.Service != nil, Takeover: string(s.Takeover), Strategy: s.Strategy,
	}
	if st.Module != "" {
		j.Program = st.Module[strings.LastIndexByte(st.Module, '/')+1:]
	} else if len(st.Command) > 0 {
		j.Program = st.Command[0]
	}
	for k := range st.Env {
		j.Env = append(j.Env, k)
	}
	slices.Sort(j.Env)
	for _, in := range st.Inputs {
		j.Inputs = append(j.Inputs, Input{in.Source, in.Target})
	}
	return j
}

// PoolOf is what rules see of a pool of a peer with labels.
func PoolOf(p pcm.Pool, labels pcm.Labels) Pool {
	all := map[string]string{}
	for _, l := range []pcm.Labels{labels, p.Labels} {
		for k, v := range l {
			all[k] = v
		}
	}
	return Pool{
		ID: string(p.ID), Adapter: p.Adapter, Class: p.Class, Sandbox: p.Sandbox, Labels: all, CPU: cores(p.Capacity.CPU),
		Memory: Size(p.Capacity.Memory), GPU: p.Capacity.GPU, Disk: Size(p.Capacity.Disk), Slots: p.Slots,
	}
}

func cores(c pcm.MilliCPU) float64 { return float64(c) / 1000 }

package pcm

import (
	"cmp"
	"errors"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a job.
const (
	MaxSpec   = 1 << 20 // bytes of a signed spec
	MaxSteps  = 64      // in a job
	MaxTasks  = 100_000 // in a job, all steps together
	MaxArgs   = 4096    // words in a command
	MaxOutput = 1 << 40 // bytes of declared output of one task

	MaxPayAfter = 7 * 24 * time.Hour // for which what a job has cost may stay unpaid after its end
)

// Takeover says who may drive a job when the submitter's peer is gone.
type Takeover string

// The values of [Spec.Takeover].
const (
	TakeoverAccount Takeover = "account" // peers of the submitter's account: the default
	TakeoverAny     Takeover = "any"     // any member of the submitter's cell
	TakeoverNone    Takeover = "none"    // nobody: the job waits for its submitter
)

// Spec is what a user submits: one or more steps, each with Count tasks.
// Amounts are written in the units that people use; Validate reads them.
type Spec struct {
	Name     string   `json:"name" cbor:"1,keyasint" required:"false" doc:"Name of the job, for people; default job." example:"wordcount"`
	Budget   string   `json:"budget,omitempty" cbor:"2,keyasint,omitempty" doc:"Most that the whole job may cost, e.g. '5' or '0.25 credit'. Without it the sellers' credit limits are the bound."`
	Deadline Duration `json:"deadline,omitempty" cbor:"3,keyasint,omitempty" doc:"How long the whole job may take from its submission, e.g. '2h'. What is unfinished then is cancelled."`
	Takeover Takeover `json:"takeover,omitempty" cbor:"4,keyasint,omitempty" enum:"account,any,none" doc:"Who may drive the job when the submitter's peer is gone: peers of its account (default), any member of its cell, or none."`
	Strategy string   `json:"strategy,omitempty" cbor:"5,keyasint,omitempty" doc:"How to choose among the sites that fit: cheapest (default), spread, or plugin.NAME, which asks a plug-in of the peer that places." example:"cheapest"`
	PayAfter Duration `json:"pay_after,omitempty" cbor:"7,keyasint,omitempty" doc:"How long after the job's end what it has cost stays unpaid, at most 168h, so that you can look at what came back and dispute it ('pcm trade dispute'). Without it, tasks are paid as soon as their results are accepted. Not for services." example:"10m"`
	Steps    []Step   `json:"steps" cbor:"6,keyasint" minItems:"1" maxItems:"64" doc:"What to run."`
}

// Step is one command or module, run Count times. Tasks learn their place from
// PCM_TASK_INDEX (0 to Count-1) and PCM_TASK_COUNT.
type Step struct {
	Name      string            `json:"name,omitempty" cbor:"1,keyasint,omitempty" doc:"Name of the step; default step-N."`
	Count     int               `json:"count,omitempty" cbor:"2,keyasint,omitempty" minimum:"0" maximum:"100000" doc:"How many tasks; default 1."`
	Command   []string          `json:"command,omitempty" cbor:"3,keyasint,omitempty" doc:"Program and arguments, for adapters that run commands. Not passed through a shell."`
	Module    string            `json:"module,omitempty" cbor:"4,keyasint,omitempty" doc:"WebAssembly module (WASI): a path on the submitter's machine. Its arguments stand in args."`
	Args      []string          `json:"args,omitempty" cbor:"5,keyasint,omitempty" doc:"Arguments of the module."`
	Env       map[string]string `json:"env,omitempty" cbor:"6,keyasint,omitempty" doc:"Environment of the task. Nothing else of the seller's environment is passed."`
	Inputs    []Input           `json:"inputs,omitempty" cbor:"7,keyasint,omitempty" doc:"Files or folders that the task reads."`
	Outputs   []string          `json:"outputs,omitempty" cbor:"8,keyasint,omitempty" doc:"Files or folders, relative to the task's working folder, that come back."`
	Resources Ask               `json:"resources,omitzero" cbor:"9,keyasint,omitempty" doc:"What one task needs."`
	Class     string            `json:"class,omitempty" cbor:"10,keyasint,omitempty" doc:"Resource class that the pool must offer or have room for." example:"cpu.small"`
	Adapter   string            `json:"adapter,omitempty" cbor:"11,keyasint,omitempty" doc:"Only on pools of this adapter, e.g. process or wasm."`
	Labels    Labels            `json:"labels,omitempty" cbor:"12,keyasint,omitempty" doc:"Only on pools with all these labels."`
	TimeLimit Duration          `json:"time_limit,omitempty" cbor:"13,keyasint,omitempty" doc:"Longest run of one attempt; default 1h. Of a service: the period for which a replica is bought and its price held, after which it is placed anew; default 24h."`
	Retries   int               `json:"retries,omitempty" cbor:"14,keyasint,omitempty" minimum:"0" maximum:"100" doc:"How often a task that ended with a failure is run again; default 0. Attempts lost by a seller are run again whatever this says."`
	Needs     []string          `json:"needs,omitempty" cbor:"15,keyasint,omitempty" doc:"Steps that must be complete before this one starts. It is an order only: their results go to the submitter, not to this step."`
	Image     string            `json:"image,omitempty" cbor:"17,keyasint,omitempty" doc:"Container image in which the command runs: only on pools that run images. Without it, pools that run containers use an image of their own." example:"debian:12"`
	Network   bool              `json:"network,omitempty" cbor:"18,keyasint,omitempty" doc:"The task needs the network: only on pools that give it. Without it, tasks have none where the pool can keep them from it."`
	Service   *Service          `json:"service,omitempty" cbor:"20,keyasint,omitempty" doc:"The tasks are replicas of a service: they run until the job is stopped, and are reached by 'pcm port-forward'."`
	ModuleAt  Digest            `json:"module_digest,omitempty" cbor:"16,keyasint,omitempty" doc:"Content of the module. Filled in at submission."`
}

// Input is a file or folder of the submitter, seen by the task at Target.
type Input struct {
	Source string `json:"source" cbor:"1,keyasint" doc:"Path on the submitter's machine, relative to the folder of the spec."`
	Target string `json:"target,omitempty" cbor:"2,keyasint,omitempty" doc:"Path in the task's working folder; default: the source's last element."`
	Digest Digest `json:"digest,omitempty" cbor:"3,keyasint,omitempty" doc:"Content of the source. Filled in at submission."`
}

// Ask is what a task needs, as a person writes it.
type Ask struct {
	CPU    string `json:"cpu,omitempty" cbor:"1,keyasint,omitempty" doc:"Cores: 2, 0.5 or 500m." example:"500m"`
	Memory string `json:"memory,omitempty" cbor:"2,keyasint,omitempty" doc:"Memory: 64MiB, 8 GiB." example:"64MiB"`
	GPU    int64  `json:"gpu,omitempty" cbor:"3,keyasint,omitempty" minimum:"0" doc:"Accelerators; default 1 if accelerator says what they have to be."`
	Disk   string `json:"disk,omitempty" cbor:"4,keyasint,omitempty" doc:"Disk space: 10GiB. Only on pools that state theirs." example:"10GiB"`

	Accelerator string   `json:"accelerator,omitempty" cbor:"5,keyasint,omitempty" maxLength:"256" doc:"What each accelerator has to be: a name or model that 'pcm class list' shows, or conditions on vendor, model, slice, memory and TOPS at a precision, separated by commas." example:"fp16 >= 300 TOPS, memory >= 40 GiB"`
	Software    []string `json:"software,omitempty" cbor:"6,keyasint,omitempty" maxItems:"32" doc:"What has to be installed: python, cuda>=12, gcc=12.2. Only on pools that state it."`
	Bandwidth   string   `json:"bandwidth,omitempty" cbor:"7,keyasint,omitempty" doc:"Network of one machine, at least: 100 Gbit/s. Only on pools that state theirs."`
	Fabric      string   `json:"fabric,omitempty" cbor:"8,keyasint,omitempty" doc:"Kind of network among the machines, e.g. infiniband, roce or ethernet."`
}

// Duration is a time.Duration that people write as "90s", "10m" or "2h".
type Duration string

// Get reads the duration; empty is def. The error has code Invalid.
func (d Duration) Get(def time.Duration) (time.Duration, error) {
	if d == "" {
		return def, nil
	}
	v, err := time.ParseDuration(string(d))
	if err != nil || v <= 0 {
		return 0, Errorf(Invalid, "%q is not a length of time; write it like 90s, 10m or 2h", string(d))
	}
	return v, nil
}

// Defaults of a step.
const (
	DefaultTimeLimit = time.Hour
	MaxTimeLimit     = 365 * 24 * time.Hour
)

var defaultAsk = Resources{CPU: 100, Memory: 64 << 20}

// Shape is what one task of the step reserves: its class's shape, overridden by
// what resources says; without both, a tenth of a core and 64 MiB.
func (s Step) Shape() (Resources, error) {
	r := defaultAsk
	if c, ok := FindClass(s.Class); ok {
		r = c.Resources
	}
	r, err := s.Resources.shape(r)
	if err != nil {
		return r, err
	}
	if r.CPU == 0 && r.Memory == 0 && r.GPU == 0 {
		return r, Errorf(Invalid, "a task must ask for some cpu, memory or gpu")
	}
	if err := r.CheckMemory(); err != nil {
		return r, err
	}
	return r, r.Validate()
}

// shape is r, overridden by what a asks for.
func (a Ask) shape(r Resources) (Resources, error) {
	var err error
	if a.CPU != "" {
		if r.CPU, err = ParseMilliCPU(a.CPU); err != nil {
			return r, err
		}
	}
	if a.Memory != "" {
		if r.Memory, err = ParseBytes(a.Memory); err != nil {
			return r, err
		}
	}
	if a.Disk != "" {
		if r.Disk, err = ParseBytes(a.Disk); err != nil {
			return r, err
		}
	}
	if a.Accelerator != "" {
		r.GPU = max(r.GPU, 1)
	}
	if a.GPU != 0 {
		r.GPU = a.GPU
	}
	return r, r.Validate()
}

// demand is what a asks for beside an amount. The error is a *FieldError.
func (a Ask) demand(c *catalogue) (d Demand, err error) {
	if a.Accelerator != "" {
		ask, err := c.parseAccelerator(a.Accelerator)
		if err != nil {
			return d, &FieldError{"accelerator", err}
		}
		d.Accelerator = &ask
	}
	if len(a.Software) > MaxSoftware {
		return d, &FieldError{"software", Errorf(Invalid, "%d names are too many: at most %d", len(a.Software), MaxSoftware)}
	}
	for i, s := range a.Software {
		ask, err := ParseSoftware(s)
		if err != nil {
			return d, &FieldError{"software[" + strconv.Itoa(i) + "]", err}
		}
		d.Software = append(d.Software, ask)
	}
	if a.Bandwidth != "" {
		if d.Bandwidth, err = ParseBitRate(a.Bandwidth); err != nil {
			return d, &FieldError{"bandwidth", err}
		}
	}
	if a.Fabric != "" && !ValidName(a.Fabric) {
		return d, &FieldError{"fabric", Errorf(Invalid, "%.40q is not a name of lower-case letters, digits, dots and dashes", a.Fabric)}
	}
	d.Fabric = a.Fabric
	return d, nil
}

// Wants are the features that a pool must have to run the step's tasks.
func (s Step) Wants() []Feature {
	wants := []Feature{FeatureCommand}
	switch {
	case s.Module != "":
		wants[0] = FeatureModule
	case s.Image != "":
		wants[0] = FeatureImage
	}
	if s.Network {
		wants = append(wants, FeatureNetwork)
	}
	if s.Service != nil {
		wants = append(wants, FeatureService)
		if s.Service.Health != nil && len(s.Service.Health.Command) > 0 {
			wants = append(wants, FeatureExec)
		}
	}
	return wants
}

// Outline is what the ledger must know of the step.
func (s Step) Outline() Shape {
	o := Shape{Count: s.Count, Retries: s.Retries}
	if s.Service != nil {
		o.Service, o.Scale = true, s.Service.Initial(s.Count)
	}
	return o
}

// Limit is the step's time limit: of a service, the period for which a replica is bought.
func (s Step) Limit() time.Duration {
	if s.Service != nil {
		return orLength(s.TimeLimit, DefaultPeriod)
	}
	return orLength(s.TimeLimit, DefaultTimeLimit)
}

// BudgetAmount is the budget and its unit; 0 means none was given.
func (s Spec) BudgetAmount() (Micro, string, error) {
	if s.Budget == "" {
		return 0, DefaultUnit, nil
	}
	amount, unit, _ := strings.Cut(strings.TrimSpace(s.Budget), " ")
	unit = strings.TrimSpace(unit)
	if unit == "" || unit == DefaultUnit+"s" {
		unit = DefaultUnit
	}
	m, err := ParseMicro(amount)
	if err != nil {
		return 0, "", err
	}
	if m <= 0 || !ValidName(unit) {
		return 0, "", Errorf(Invalid, "budget %q is not an amount above zero with a unit, like '5 credit'; units are lower-case names", s.Budget)
	}
	return m, unit, nil
}

// Tasks counts the tasks of all steps.
func (s Spec) Tasks() int {
	n := 0
	for _, st := range s.Steps {
		n += st.Count
	}
	return n
}

// FieldError is a fault in one field of a spec.
type FieldError struct {
	Field string // path like "steps[0].resources.cpu"
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *FieldError) Unwrap() error { return e.Err }

// Normalize fills in defaults and checks everything that can be checked without
// the mesh. It returns every fault found, each a *FieldError.
func (s *Spec) Normalize() []error {
	var faults []error
	bad := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{field, Errorf(Invalid, format, args...)})
	}
	check := func(field string, err error) {
		if err != nil {
			faults = append(faults, &FieldError{field, err})
		}
	}
	if s.Name == "" {
		s.Name = "job"
	}
	if len(s.Name) > 63 || !Printable(s.Name) {
		bad("name", "%.80q is not a name of at most 63 printable characters", s.Name)
	}
	if s.Takeover == "" {
		s.Takeover = TakeoverAccount
	}
	if !slices.Contains([]Takeover{TakeoverAccount, TakeoverAny, TakeoverNone}, s.Takeover) {
		bad("takeover", "%q is not account, any or none", s.Takeover)
	}
	if s.Strategy == "" {
		s.Strategy = "cheapest"
	}
	if !ValidName(s.Strategy) {
		bad("strategy", "%q is not the name of a strategy", s.Strategy)
	}
	_, _, err := s.BudgetAmount()
	check("budget", err)
	if s.Deadline != "" {
		_, err = s.Deadline.Get(0)
		check("deadline", err)
	}
	if s.PayAfter != "" {
		d, err := s.PayAfter.Get(0)
		switch check("pay_after", err); {
		case d > MaxPayAfter:
			bad("pay_after", "%s is too long: at most %s", d, MaxPayAfter)
		case d.Truncate(time.Millisecond) != d:
			bad("pay_after", "%s is not a whole number of milliseconds", d)
		case slices.ContainsFunc(s.Steps, func(st Step) bool { return st.Service != nil }):
			bad("pay_after", "a service is paid for period by period and has no end after which it could be paid")
		}
	}
	if len(s.Steps) == 0 {
		bad("steps", "a job has at least one step")
	}
	if len(s.Steps) > MaxSteps {
		bad("steps", "%d steps are too many: at most %d", len(s.Steps), MaxSteps)
		return faults
	}
	names := map[string]bool{}
	for i := range s.Steps {
		st := &s.Steps[i]
		at := "steps[" + strconv.Itoa(i) + "]"
		if st.Name == "" {
			st.Name = "step-" + strconv.Itoa(i+1)
		}
		faults = append(faults, st.normalize(at)...)
		if names[st.Name] {
			bad(at+".name", "two steps are named %q", st.Name)
		}
		for j, need := range st.Needs {
			switch k := slices.IndexFunc(s.Steps[:i], func(o Step) bool { return o.Name == need }); {
			case k < 0:
				bad(at+".needs["+strconv.Itoa(j)+"]", "%q is not a step before this one", need)
			case s.Steps[k].Service != nil:
				bad(at+".needs["+strconv.Itoa(j)+"]", "%q is a service, which is never complete", need)
			}
		}
		names[st.Name] = true
	}
	if n := s.Tasks(); n > MaxTasks {
		bad("steps", "%d tasks are too many: at most %d in one job", n, MaxTasks)
	}
	return faults
}

func (st *Step) normalize(at string) (faults []error) {
	bad := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{at + field, Errorf(Invalid, format, args...)})
	}
	check := func(field string, err error) {
		if err != nil {
			faults = append(faults, &FieldError{at + field, err})
		}
	}
	if !ValidName(st.Name) {
		bad(".name", "%q is not a name of lower-case letters, digits, dots and dashes", st.Name)
	}
	if st.Count < 0 || st.Count > MaxTasks {
		bad(".count", "%d is out of range: 1 to %d", st.Count, MaxTasks)
	}
	if st.Count == 0 {
		st.Count = 1
	}
	switch {
	case len(st.Command) == 0 && st.Module == "":
		bad("", "a step has a command or a module")
	case len(st.Command) > 0 && st.Module != "":
		bad(".module", "a step has a command or a module, not both")
	case st.Module == "" && len(st.Args) > 0:
		bad(".args", "args are the arguments of a module; a command's stand in command")
	case len(st.Command) > 0 && st.Command[0] == "":
		bad(".command[0]", "the program's name is empty")
	}
	if len(st.Command)+len(st.Args) > MaxArgs {
		bad(".command", "%d words are too many: at most %d", len(st.Command)+len(st.Args), MaxArgs)
	}
	for field, words := range map[string][]string{".command": st.Command, ".args": st.Args} {
		for j, w := range words {
			if !plainText(w) {
				bad(field+"["+strconv.Itoa(j)+"]", "%.80q holds a NUL character or isn't UTF-8", w)
			}
		}
	}
	for k, v := range st.Env {
		if k == "" || strings.Contains(k, "=") || !plainText(k) {
			bad(".env", "%.80q is not the name of a variable", k)
		} else if !plainText(v) {
			bad(".env."+k, "the value holds a NUL character or isn't UTF-8")
		}
	}
	switch {
	case len(st.Image) > 255 || strings.ContainsFunc(st.Image, func(r rune) bool { return r <= ' ' || r > '~' }):
		bad(".image", "%.80q is not the name of a container image", st.Image)
	case st.Image != "" && st.Module != "":
		bad(".image", "a module runs without an image")
	}
	if !plainText(st.Module) {
		bad(".module", "%.80q is not a path in UTF-8", st.Module)
	}
	targets := map[string]bool{}
	for j := range st.Inputs {
		in := &st.Inputs[j]
		f := ".inputs[" + strconv.Itoa(j) + "]"
		if in.Source == "" || !plainText(in.Source) {
			bad(f+".source", "%.80q is not a path in UTF-8", in.Source)
		}
		if in.Target == "" {
			in.Target = path.Base(path.Clean(strings.ReplaceAll(in.Source, `\`, "/")))
		}
		switch t := path.Clean(in.Target); {
		case !localPath(in.Target):
			bad(f+".target", "%q leads out of the task's working folder: give a relative path without ..", in.Target)
		case t == ".":
			bad(f+".target", "%q is the task's working folder itself: name a place in it", in.Target)
		case targets[t]:
			bad(f+".target", "another input stands at %q already", t)
		default:
			targets[t] = true
		}
		if in.Digest != "" && !in.Digest.Valid() {
			bad(f+".digest", "%q is not a SHA-256 in hex", in.Digest)
		}
	}
	for j, out := range st.Outputs {
		if !localPath(out) {
			bad(".outputs["+strconv.Itoa(j)+"]", "%q leads out of the task's working folder: give a relative path without ..", out)
		}
	}
	st.expand()
	if _, ok := FindClass(st.Class); st.Class != "" && !ok && !(st.spelledOut() && ValidName(st.Class)) {
		check(".class", Errorf(Invalid, "no class is named %.40q%s", st.Class, meant(st.Class, classNames())))
	}
	shape, err := st.Shape()
	if low := shape.CheckMemory(); err != nil && low != nil {
		check(".resources.memory", low)
	} else {
		check(".resources", err)
	}
	demand, err := st.Resources.demand(known())
	if fe := (*FieldError)(nil); errors.As(err, &fe) {
		faults = append(faults, &FieldError{at + ".resources." + fe.Field, fe.Err})
	} else if demand.Accelerator != nil {
		// In words that the peers understand whose lists are older or other than this one's.
		st.Resources.Accelerator = demand.Accelerator.String()
	}
	if st.Adapter != "" && !ValidName(st.Adapter) {
		bad(".adapter", "%q is not the name of an adapter", st.Adapter)
	}
	check(".labels", st.Labels.Validate())
	d, err := st.TimeLimit.Get(DefaultTimeLimit)
	if check(".time_limit", err); err == nil && d > MaxTimeLimit {
		bad(".time_limit", "%s is longer than a year", st.TimeLimit)
	}
	if st.Retries < 0 || st.Retries > 100 {
		bad(".retries", "%d is out of range: 0 to 100", st.Retries)
	}
	if st.Service != nil {
		st.Service.normalize(st, bad)
	}
	return faults
}

// expand writes what the step's class stands for into the step, if only this peer knows the class.
func (st *Step) expand() {
	c, ok := FindClass(st.Class)
	if !ok || !c.Own {
		return
	}
	a, of := &st.Resources, c.Asks
	for _, f := range []struct{ to, from *string }{
		{&a.CPU, &of.CPU}, {&a.Memory, &of.Memory}, {&a.Disk, &of.Disk}, {&a.Accelerator, &of.Accelerator},
		{&a.Bandwidth, &of.Bandwidth}, {&a.Fabric, &of.Fabric},
	} {
		*f.to = cmp.Or(*f.to, *f.from)
	}
	a.GPU = cmp.Or(a.GPU, of.GPU)
	for _, s := range of.Software {
		if !slices.Contains(a.Software, s) {
			a.Software = append(a.Software, s)
		}
	}
}

// spelledOut tells whether the step says itself how much it needs: then peers
// that don't know its class can run it all the same.
func (st *Step) spelledOut() bool { return st.Resources.CPU != "" && st.Resources.Memory != "" }

// plainText tells whether s is UTF-8 without NUL: what can be encoded, and passed to a program.
func plainText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// localPath tells whether p stays inside a folder: relative, no "..", not empty.
func localPath(p string) bool {
	return p != "" && plainText(p) && !strings.HasPrefix(p, "/") && !strings.Contains(p, `\`) &&
		path.Clean(p) != ".." && !strings.HasPrefix(path.Clean(p), "../")
}

package description

// Task is what task stands for in templates and expressions.
type Task struct {
	Key      string `json:"key"`      // of the attempt: "trd-….7.1"; the same for no other, on this node
	Name     string `json:"name"`     // the same for no other anywhere: lower-case letters, digits and dashes, 63 at most, a letter first
	Owner    string `json:"owner"`    // what the names of all jobs of this node begin with
	Instance string `json:"instance"` // the node's name at back ends
	Job      string `json:"job"`      // ID of the job, "job-…"
	Trade    string `json:"trade"`    // ID of the trade, "trd-…": of one step of the job
	Pool     string `json:"pool"`     // the pool that it was sold in, by our name
	Index    int    `json:"index"`    // of the task in its step
	Count    int    `json:"count"`    // tasks in the step
	Attempt  int    `json:"attempt"`  // 1, and more where it is tried again

	Command []string          `json:"command"` // with its arguments
	Image   string            `json:"image"`   // "": the provider's choice
	Env     map[string]string `json:"env"`     // all that the task is to find, but PATH and HOME
	Network bool              `json:"network"` // it asks for the network
	Port    int               `json:"port"`    // at which it serves others; 0: it doesn't

	CPU      float64 `json:"cpu"`       // cores
	MilliCPU int64   `json:"cpu_milli"` // thousandths of a core
	Memory   int64   `json:"memory"`    // bytes
	Disk     int64   `json:"disk"`      // bytes
	GPU      int64   `json:"gpu"`       // accelerators
	Seconds  int64   `json:"seconds"`   // its time limit, rounded up; 0: none

	Inputs    []Input  `json:"inputs"`     // files and folders that it needs
	Outputs   []string `json:"outputs"`    // relative to the working folder
	OutputCap int64    `json:"output_cap"` // bytes of all output

	// Script is for providers that run a shell's text and no more. It needs a
	// POSIX shell with mkfifo and tar, and where data goes by URL curl, wget or
	// python3. It makes a working folder in PCM_WORK, or where it is, brings the
	// inputs there, runs the command with its environment added to what there is,
	// hands SIGTERM on, and takes the outputs away. Data comes by the URLs of
	// data.scheme https; or the provider brings it, and the text is run with PCM_IN
	// as the folder that stands for data.in_url, and PCM_OUT for data.out_url.
	//
	// Its output holds both streams and the exit code, told apart by marks that
	// the task can't guess: a description that uses it needs one log, for stdout.
	// The exit code in it counts before that of the status. A task that looks at
	// its parent, whose command line the text may be, can forge them: how it ended,
	// and whose fault that is.
	Script string `json:"script"`

	// ScriptURL is where Script can be got, for providers whose text is short or the
	// same for many: what is got there is run by a POSIX shell. It needs a data store
	// s3 whose scheme is https.
	ScriptURL string `json:"script_url"`

	Array Array `json:"array"` // by which call its job was made; see Many

	Let  map[string]any `json:"let"`  // what Let named
	Step map[string]any `json:"step"` // what the steps before create gave
}

// Array is a task's place among those whose jobs were made by one call. That of a task
// which was created by itself is the only one of its name.
type Array struct {
	Name  string `json:"name"`  // of the array; task.name where there is none
	Index int    `json:"index"` // from 0
	Count int    `json:"count"` // 1 where there is none
}

// Input is one of a task's inputs.
type Input struct {
	Index  int    `json:"index"`  // from 0: its place in the list
	Target string `json:"target"` // relative to the working folder
	Folder bool   `json:"folder"` // it is a folder, not a file
}

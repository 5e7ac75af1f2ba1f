package slurm

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// transport is a way to a Slurm controller. Each call has its own time limit
// within ctx's. Errors have code Unavailable when the controller can't be
// reached or asks for patience, and then the call may have taken effect;
// Refused, NotFound or Invalid when it said no.
type transport interface {
	// submit gives the job's number.
	submit(ctx context.Context, b batch) (id int64, err error)
	// jobs are those of our user that the controller remembers, ended ones for
	// some minutes. Tasks of an array that have yet to run may come as one.
	jobs(ctx context.Context) ([]job, error)
	// end gives what the controller knows of the end of one job.
	end(ctx context.Context, j jobRef) (job, error)
	// signal sends a job that still has that name a signal; with "" it is cancelled.
	signal(ctx context.Context, j jobRef, sig string) error
	suspend(ctx context.Context, j jobRef, on bool) error
	partitions(ctx context.Context) ([]partition, error)
	nodes(ctx context.Context) ([]node, error)
	// version is Slurm's, e.g. "22.05.8".
	version(ctx context.Context) (string, error)
}

// pendingCanceler is a transport that can't cancel one task of an array alone while
// it waits as one job with others, but all of these together.
type pendingCanceler interface {
	cancelPending(ctx context.Context, array jobRef) error
}

// batch is one submission: a job, or an array of them.
type batch struct {
	Name, Comment string
	Script        string
	Partition     string
	GPU           string // type; "": any
	Each          pcm.Resources
	Minutes       int64 // 0: the partition's default
	Count         int   // over 1: an array of indexes 0 to Count-1
	Width         int   // of the array that may run at once; 0: all
	Dir           string
}

// array is the value of --array.
func (b batch) array() string {
	if b.Count <= 1 {
		return ""
	}
	s := "0-" + strconv.Itoa(b.Count-1)
	if b.Width > 0 && b.Width < b.Count {
		s += "%" + strconv.Itoa(b.Width)
	}
	return s
}

// cpus and megabytes that the task needs, rounded up.
func (b batch) cpus() int64      { return max(1, (int64(b.Each.CPU)+999)/1000) }
func (b batch) megabytes() int64 { return (int64(b.Each.Memory) + 1<<20 - 1) >> 20 }
func (b batch) gres() string {
	if b.Each.GPU <= 0 {
		return ""
	}
	if b.GPU != "" {
		return "gpu:" + b.GPU + ":" + strconv.FormatInt(b.Each.GPU, 10)
	}
	return "gpu:" + strconv.FormatInt(b.Each.GPU, 10)
}

// jobRef names a job, or one task of an array; the name guards against numbers
// that were given to another job since.
type jobRef struct {
	ID    int64 // of the job, or of its array
	Index int   // in the array; -1: it is none
	Name  string
}

func (j jobRef) String() string {
	if j.Index < 0 {
		return strconv.FormatInt(j.ID, 10)
	}
	return strconv.FormatInt(j.ID, 10) + "_" + strconv.Itoa(j.Index)
}

// job is what Slurm says of a job, of a task of an array, or of several such
// tasks that have yet to run.
type job struct {
	ID        int64 // of the job, or of its array
	Raw       int64 // its own number
	Index     int   // in the array; -1: it is none, or stands for Indexes
	Indexes   string
	State     string // one of Slurm's words
	Reason    string
	Submitted time.Time
	Node      string // where its script runs
	Partition string
	CPUs      int64
	Memory    pcm.Bytes
	GPUs      int64
	Name      string
	Comment   string

	ended    bool // the fields below are known
	ExitCode int  // 128+n for signal n
	Restarts int
}

// covers tells whether the job stands for a task of its array; -1 asks for one that is none.
func (j job) covers(index int) bool {
	if j.Indexes == "" {
		return j.Index == index || index == 0 && j.Index == -1
	}
	return slices.ContainsFunc(j.ranges(), func(r indexes) bool { return r.has(index) })
}

// waiting is how many tasks of an array the job stands for that have yet to run.
func (j job) waiting() (n int) {
	for _, r := range j.ranges() {
		n += max(0, (r.last-r.first)/r.step+1)
	}
	return n
}

// indexes are some of an array's.
type indexes struct{ first, last, step int }

func (r indexes) has(i int) bool { return i >= r.first && i <= r.last && (i-r.first)%r.step == 0 }

// ranges reads Indexes: "0-5,7,10-20:2%4".
func (j job) ranges() (all []indexes) {
	if j.Indexes == "" {
		return nil
	}
	list, _, _ := strings.Cut(j.Indexes, "%")
	for part := range strings.SplitSeq(strings.Trim(list, "[]"), ",") {
		part, stepText, stepped := strings.Cut(part, ":")
		first, last, isRange := strings.Cut(part, "-")
		r := indexes{step: 1}
		var err error
		if r.first, err = strconv.Atoi(first); err != nil {
			continue
		}
		r.last = r.first
		if isRange {
			if r.last, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		if stepped {
			if r.step, err = strconv.Atoi(stepText); err != nil || r.step <= 0 {
				continue
			}
		}
		all = append(all, r)
	}
	return all
}

// partition of a cluster.
type partition struct {
	Name    string
	Up      bool
	MaxTime time.Duration // 0: none
}

// node of a cluster.
type node struct {
	Name       string
	Address    string
	Arch       string // as uname has it
	State      string // upper case, with flags: "IDLE+DRAIN"
	Partitions []string
	Features   string
	CPUs       int64
	Allocated  int64
	Memory     pcm.Bytes
	Used       pcm.Bytes        // allocated
	GPUs       map[string]int64 // by type; "" where it has none
	GPUsUsed   map[string]int64
}

// usable tells whether jobs may start there.
func (n node) usable() bool {
	words := strings.FieldsFunc(strings.ToUpper(n.State), func(r rune) bool { return r == '+' || r == ',' })
	if len(words) == 0 {
		return false
	}
	for _, w := range words {
		switch strings.TrimRight(w, "*~#!%$@^-") {
		case "IDLE", "MIXED", "ALLOCATED", "COMPLETING", "CLOUD", "POWERED_DOWN", "POWERING_UP", "POWERING_DOWN", "DYNAMIC_NORM", "PLANNED":
		default:
			return false
		}
		if strings.HasSuffix(w, "*") { // does not respond
			return false
		}
	}
	return true
}

// parseGres reads "gpu:a100:4(S:0-1),gpu:2,lustre:1": GPUs by type.
func parseGres(s string) map[string]int64 {
	var all map[string]int64
	depth := 0
	for item := range strings.FieldsFuncSeq(s, func(r rune) bool {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			return depth == 0
		}
		return false
	}) {
		item, _, _ = strings.Cut(item, "(")
		item = strings.TrimPrefix(strings.TrimPrefix(item, "gres/"), "gres:")
		kind, rest, _ := strings.Cut(item, ":")
		if kind != "gpu" {
			continue
		}
		name, count := "", rest
		if at := strings.LastIndexByte(rest, ':'); at >= 0 {
			name, count = rest[:at], rest[at+1:]
		}
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			if rest == "" {
				n = 1
			} else if count == rest { // a type without a count
				name, n = rest, 1
			} else {
				continue
			}
		}
		if n < 0 || n > 1e6 {
			continue
		}
		if all == nil {
			all = map[string]int64{}
		}
		all[name] += n
	}
	return all
}

func sum(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}

// transient tells whether what Slurm said means that a later try may do.
func transient(text string) bool {
	text = strings.ToLower(text)
	for _, s := range []string{
		"unable to contact", "timed out", "timeout", "connection refused", "connection reset", "zero bytes", "temporarily",
		"connection failure", "communication", "not responding", "i/o error", "submit limit", "job submit rate", "broken pipe",
		"unexpected message", "transport endpoint", "slurmctld config", "try again", "munge", "max_submit", "job count limit", "unreachable",
	} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

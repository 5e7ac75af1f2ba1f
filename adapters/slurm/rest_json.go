package slurm

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// flexInt reads 3, "3", null and {"set": true, "infinite": false, "number": 3}.
type flexInt struct {
	N   int64
	Set bool
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *flexInt) UnmarshalJSON(data []byte) error {
	*f = flexInt{}
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] == '{' {
		var o struct {
			Set      bool        `json:"set"`
			Infinite bool        `json:"infinite"`
			Number   json.Number `json:"number"`
		}
		if err := json.Unmarshal(data, &o); err != nil {
			return err
		}
		if o.Set && !o.Infinite {
			f.N, f.Set = whole(string(o.Number))
		}
		return nil
	}
	f.N, f.Set = whole(strings.Trim(string(data), `"`))
	return nil
}

func whole(s string) (int64, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, true
	}
	if x, err := strconv.ParseFloat(s, 64); err == nil && x > -1e15 && x < 1e15 {
		return int64(x), true
	}
	return 0, false
}

// flexWords reads "IDLE", ["IDLE", "DRAIN"] and null; other forms are none.
type flexWords []string

// UnmarshalJSON implements json.Unmarshaler.
func (f *flexWords) UnmarshalJSON(data []byte) error {
	*f = nil
	var one string
	if json.Unmarshal(data, &one) == nil {
		if one != "" {
			*f = flexWords{one}
		}
		return nil
	}
	var many []string
	if json.Unmarshal(data, &many) == nil {
		*f = many
	}
	return nil
}

// flexCode reads an exit code: a raw wait status, or an object that says what it is.
type flexCode int

// UnmarshalJSON implements json.Unmarshaler.
func (f *flexCode) UnmarshalJSON(data []byte) error {
	*f = 0
	data = bytes.TrimSpace(data)
	if len(data) == 0 || data[0] != '{' {
		n, _ := whole(string(data))
		*f = flexCode(waitStatus(n))
		return nil
	}
	var o struct {
		Return flexInt `json:"return_code"`
		Signal struct {
			ID  flexInt `json:"id"` // v0.0.40 and later
			Old flexInt `json:"signal_id"`
		} `json:"signal"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return err
	}
	switch sig := max(o.Signal.ID.N, o.Signal.Old.N); {
	case sig > 0 && sig < 65:
		*f = flexCode(128 + sig)
	case o.Return.N > 255: // a raw wait status here as well, by some versions
		*f = flexCode(waitStatus(o.Return.N))
	default:
		*f = flexCode(o.Return.N)
	}
	return nil
}

// waitStatus makes an exit code of a raw wait status: 768 is 3, 9 is 137.
func waitStatus(n int64) int {
	if n <= 0 {
		return 0
	}
	if sig := n & 0x7f; sig != 0 {
		return 128 + int(sig)
	}
	return int(n>>8) & 0xff
}

type restJob struct {
	JobID       flexInt   `json:"job_id"`
	ArrayJobID  flexInt   `json:"array_job_id"`
	ArrayTaskID flexInt   `json:"array_task_id"`
	ArrayTasks  string    `json:"array_task_string"`
	State       flexWords `json:"job_state"`
	Reason      string    `json:"state_reason"`
	SubmitTime  flexInt   `json:"submit_time"`
	BatchHost   string    `json:"batch_host"`
	Partition   string    `json:"partition"`
	CPUs        flexInt   `json:"cpus"`
	Memory      flexInt   `json:"memory_per_node"` // MB
	TRES        string    `json:"tres_per_node"`
	TRESReq     string    `json:"tres_req_str"`
	Name        string    `json:"name"`
	Comment     string    `json:"comment"`
	UserName    string    `json:"user_name"`
	ExitCode    flexCode  `json:"exit_code"`
	Restarts    flexInt   `json:"restart_cnt"`
}

func (r restJob) open() job {
	j := job{
		ID: r.JobID.N, Raw: r.JobID.N, Index: -1, Reason: r.Reason, Submitted: seconds(r.SubmitTime.N), Node: r.BatchHost,
		Partition: r.Partition, CPUs: r.CPUs.N, Memory: pcm.Bytes(r.Memory.N) << 20, GPUs: sum(parseGres(r.TRES)),
		Name: r.Name, Comment: r.Comment, ended: true, ExitCode: int(r.ExitCode), Restarts: int(r.Restarts.N),
	}
	if len(r.State) > 0 {
		// The base state comes first, flags behind it; that it completes says less
		// than what it completes as.
		j.State = r.State[0]
		for _, flag := range r.State[1:] {
			switch flag {
			case "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "POWER_UP_NODE", "LAUNCH_FAILED", "STOPPED":
				j.State = flag
			}
		}
	}
	if r.ArrayJobID.N > 0 {
		j.ID = r.ArrayJobID.N
		switch {
		case r.ArrayTasks != "":
			j.Indexes = r.ArrayTasks
		case r.ArrayTaskID.Set:
			j.Index = int(r.ArrayTaskID.N)
		}
	}
	return j
}

type restPartition struct {
	Name    string    `json:"name"`
	OldTime flexInt   `json:"max_time_limit"` // minutes; to v0.0.38
	Old     flexWords `json:"state"`
	Maximum struct {
		Time flexInt `json:"time"`
	} `json:"maximums"`
	Partition struct {
		State flexWords `json:"state"`
	} `json:"partition"`
}

func (r restPartition) open() partition {
	p := partition{Name: r.Name}
	for _, w := range append(r.Old, r.Partition.State...) {
		p.Up = p.Up || w == "UP"
	}
	minutes := max(r.OldTime.N, r.Maximum.Time.N)
	if minutes > 0 && minutes < 1<<31 {
		p.MaxTime = time.Duration(minutes) * time.Minute
	}
	return p
}

type restNode struct {
	Name       string    `json:"name"`
	Address    string    `json:"address"`
	Arch       string    `json:"architecture"`
	State      flexWords `json:"state"`
	Flags      flexWords `json:"state_flags"`
	Partitions flexWords `json:"partitions"`
	Features   flexWords `json:"active_features"`
	CPUs       flexInt   `json:"cpus"`
	Effective  flexInt   `json:"effective_cpus"`
	Allocated  flexInt   `json:"alloc_cpus"`
	Memory     flexInt   `json:"real_memory"`
	Used       flexInt   `json:"alloc_memory"`
	Gres       string    `json:"gres"`
	GresUsed   string    `json:"gres_used"`
}

func (r restNode) open() node {
	n := node{
		Name: r.Name, Address: r.Address, Arch: r.Arch, State: strings.ToUpper(strings.Join(append(r.State, r.Flags...), "+")), Partitions: r.Partitions,
		Features: strings.Join(r.Features, ","), CPUs: r.CPUs.N, Allocated: r.Allocated.N,
		Memory: pcm.Bytes(r.Memory.N) << 20, Used: pcm.Bytes(r.Used.N) << 20, GPUs: parseGres(r.Gres), GPUsUsed: parseGres(r.GresUsed),
	}
	if r.Effective.N > 0 {
		n.CPUs = r.Effective.N
	}
	return n
}

// seconds reads a time since 1970; none is zero.
func seconds(n int64) time.Time {
	if n <= 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

package supervisor

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// The protocol between daemon and supervisor: frames of a 4-byte big-endian
// length and one CBOR message, over a unix socket. Requests are pipelined and
// answered in any order; status events are pushed. Either side may be the newer
// one: hello settles the highest protocol that both know.
const (
	minProtocol = 1
	maxProtocol = 1
)

type op uint8

const (
	opHello   op = iota + 1
	opStart      // Start, Runner
	opStop       // Key, GraceMS, Reason
	opRemove     // Key
	opList       // Runner, After; answered page by page
	opExtend     // Leases
	opRetire     // end if nothing runs
	opReply      // answer to ID
	opEvent      // pushed: Statuses
	opSuspend    // Key
	opResume     // Key
)

const (
	listPage   = 2000  // statuses in one answer
	maxLeases  = 20000 // in one Extend
	maxPending = 16384 // messages waiting to be written to one peer
)

type message struct {
	ID       uint64     `cbor:"1,keyasint,omitempty"`
	Op       op         `cbor:"2,keyasint"`
	Hello    *hello     `cbor:"3,keyasint,omitempty"`
	Welcome  *welcome   `cbor:"4,keyasint,omitempty"`
	Runner   string     `cbor:"5,keyasint,omitempty"`
	Task     *task      `cbor:"6,keyasint,omitempty"`
	Key      string     `cbor:"7,keyasint,omitempty"`
	GraceMS  int64      `cbor:"8,keyasint,omitempty"`
	Reason   string     `cbor:"9,keyasint,omitempty"`
	After    string     `cbor:"10,keyasint,omitempty"`
	Leases   []lease    `cbor:"11,keyasint,omitempty"`
	Statuses []status   `cbor:"12,keyasint,omitempty"`
	More     bool       `cbor:"13,keyasint,omitempty"`
	Err      *pcm.Error `cbor:"14,keyasint,omitempty"`
}

type hello struct {
	Min     int    `cbor:"1,keyasint"`
	Max     int    `cbor:"2,keyasint"`
	Version string `cbor:"3,keyasint,omitempty"`
}

type welcome struct {
	Protocol int              `cbor:"1,keyasint"`
	Version  string           `cbor:"2,keyasint,omitempty"`
	PID      int              `cbor:"3,keyasint"`
	Running  int              `cbor:"4,keyasint"`
	Facts    map[string]Facts `cbor:"5,keyasint"` // by runner
}

type lease struct {
	Key      string            `cbor:"1,keyasint"`
	Deadline adapters.BootTime `cbor:"2,keyasint"`
}

// task is adapters.Task as it travels and as it is stored in task.cbor.
type task struct {
	Key       string            `cbor:"1,keyasint"`
	Job       pcm.JobID         `cbor:"2,keyasint,omitempty"`
	Fence     uint64            `cbor:"3,keyasint,omitempty"`
	Count     int               `cbor:"4,keyasint,omitempty"`
	Command   []string          `cbor:"5,keyasint,omitempty"`
	Module    string            `cbor:"6,keyasint,omitempty"`
	Args      []string          `cbor:"7,keyasint,omitempty"`
	Env       map[string]string `cbor:"8,keyasint,omitempty"`
	Inputs    []mount           `cbor:"9,keyasint,omitempty"`
	Outputs   []string          `cbor:"10,keyasint,omitempty"`
	Resources pcm.Resources     `cbor:"11,keyasint"`
	LimitMS   int64             `cbor:"12,keyasint,omitempty"`
	OutputCap pcm.Bytes         `cbor:"13,keyasint,omitempty"`
	Deadline  adapters.BootTime `cbor:"14,keyasint"`
	Runner    string            `cbor:"15,keyasint,omitempty"`
	PreparedN int64             `cbor:"16,keyasint,omitempty"` // wall clock, Unix nanoseconds
	Image     string            `cbor:"17,keyasint,omitempty"`
	Network   bool              `cbor:"18,keyasint,omitempty"`
	Port      int               `cbor:"19,keyasint,omitempty"`
	Batch     int               `cbor:"20,keyasint,omitempty"`
	Width     int               `cbor:"21,keyasint,omitempty"`
	Pool      pcm.PoolID        `cbor:"22,keyasint,omitempty"`
}

type mount struct {
	Path   string `cbor:"1,keyasint"`
	Target string `cbor:"2,keyasint"`
}

// status is adapters.Status as it travels and as it is stored in status.cbor.
type status struct {
	Key      string         `cbor:"1,keyasint"`
	Runner   string         `cbor:"2,keyasint"`
	Fence    uint64         `cbor:"3,keyasint,omitempty"`
	State    adapters.State `cbor:"4,keyasint"`
	StartedN int64          `cbor:"5,keyasint,omitempty"` // wall clock, Unix nanoseconds
	Outcome  pcm.Outcome    `cbor:"6,keyasint,omitempty"`
	ExitCode int            `cbor:"7,keyasint,omitempty"`
	Usage    pcm.Usage      `cbor:"8,keyasint"`
	Reason   string         `cbor:"9,keyasint,omitempty"`
	Native   string         `cbor:"10,keyasint,omitempty"`
}

func wireTask(runner string, t adapters.Task) *task {
	w := &task{
		Key: t.Key.String(), Job: t.Job, Fence: t.Fence, Count: t.Count, Command: t.Command, Module: t.Module,
		Args: t.Args, Env: t.Env, Outputs: t.Outputs, Resources: t.Resources, LimitMS: t.Limit.Milliseconds(),
		OutputCap: t.OutputCap, Deadline: t.Deadline, Runner: runner,
		Image: t.Image, Network: t.Network, Port: t.Port, Batch: t.Batch, Width: t.Width, Pool: t.Pool,
	}
	if t.Limit > 0 && w.LimitMS == 0 {
		w.LimitMS = 1
	}
	for _, in := range t.Inputs {
		w.Inputs = append(w.Inputs, mount{in.Path, in.Target})
	}
	return w
}

// open checks the key and gives the task back.
func (w *task) open() (adapters.Task, error) {
	k, err := adapters.ParseKey(w.Key)
	if err != nil {
		return adapters.Task{}, err
	}
	t := adapters.Task{
		Key: k, Job: w.Job, Fence: w.Fence, Count: w.Count, Command: w.Command, Module: w.Module, Args: w.Args,
		Env: w.Env, Outputs: w.Outputs, Resources: w.Resources, Limit: time.Duration(w.LimitMS) * time.Millisecond,
		OutputCap: w.OutputCap, Deadline: w.Deadline,
		Image: w.Image, Network: w.Network, Port: w.Port, Batch: w.Batch, Width: w.Width, Pool: w.Pool,
	}
	for _, in := range w.Inputs {
		t.Inputs = append(t.Inputs, adapters.Mount{Path: in.Path, Target: in.Target})
	}
	return t, nil
}

func (s status) open() (adapters.Status, error) {
	k, err := adapters.ParseKey(s.Key)
	if err != nil {
		return adapters.Status{}, err
	}
	out := adapters.Status{Key: k, Fence: s.Fence, State: s.State, Outcome: s.Outcome, ExitCode: s.ExitCode, Usage: s.Usage, Reason: s.Reason, Native: s.Native}
	if s.StartedN != 0 {
		out.Started = time.Unix(0, s.StartedN)
	}
	return out, nil
}

func writeMessage(w *bufio.Writer, m *message) error {
	body, err := pcm.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > pcm.MaxMessage {
		return pcm.Errorf(pcm.TooLarge, "message of %d bytes is over the bound of %d", len(body), pcm.MaxMessage)
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err = w.Write(body)
	return err
}

func readMessage(r *bufio.Reader) (*message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > pcm.MaxMessage {
		return nil, pcm.Errorf(pcm.TooLarge, "message of %d bytes is over the bound of %d", n, pcm.MaxMessage)
	}
	// Grow with what really arrives: the length is only a claim.
	body := make([]byte, min(n, 64<<10))
	for have := uint32(0); ; {
		if _, err := io.ReadFull(r, body[have:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		have = uint32(len(body))
		if have == n {
			break
		}
		body = append(body, make([]byte, min(n-have, have))...)
	}
	m := new(message)
	if err := pcm.Unmarshal(body, m); err != nil {
		return nil, err
	}
	return m, nil
}

// wireError makes an error fit to travel.
func wireError(err error) *pcm.Error {
	if err == nil {
		return nil
	}
	var e *pcm.Error
	if errors.As(err, &e) {
		return &pcm.Error{Code: e.Code, Message: cut(e.Message, 1024), Op: e.Op}
	}
	return &pcm.Error{Code: pcm.Internal, Message: cut(err.Error(), 1024)}
}

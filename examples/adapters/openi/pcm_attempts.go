package main

// The attempts that were given to this plug-in: kept on disk, watched, read from.

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"openi/pluginpb"
)

// Attempt is one that was given to the plug-in.
type Attempt struct {
	Request *pluginpb.StartRequest
	ID      string         // the back end's name for it; "" while there is none
	Note    map[string]any // what the back end wants to know later; saved with it

	all    *attempts
	turn   sync.Mutex // one call of the back end at a time
	state  *pluginpb.Status
	asked  bool      // Stop was called
	doubt  bool      // the back end may have it, though it didn't say so
	known  bool      // it was begun
	making bool      // Start was called at the back end
	looks  int       // for what is in doubt
	gone   int       // looks in a row that did not show it
	mute   time.Time // since when the output of what has ended can't be read
}

// kept is an attempt on disk.
type kept struct {
	Request json.RawMessage
	Status  json.RawMessage
	ID      string
	Note    map[string]any
	Asked   bool
	Doubt   bool
	Known   bool
	Sizes   map[string]int64 // of the streams, as far as Note knows of them
}

// patience is how long the end of an attempt waits for output that can't be read.
const patience = 2 * time.Minute

// attempts are all there are.
type attempts struct {
	dir     string
	backend Backend
	every   time.Duration

	mu      sync.Mutex
	byKey   map[string]*Attempt
	changed chan struct{} // closed when something of one changes
	serial  map[string]int
	count   int
}

func newAttempts(dir string, b Backend, every time.Duration) (*attempts, error) {
	s := &attempts{dir: dir, backend: b, every: every, byKey: map[string]*Attempt{}, changed: make(chan struct{}), serial: map[string]int{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*", "attempt.json"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		var k kept
		if err == nil {
			err = json.Unmarshal(data, &k)
		}
		a := &Attempt{Request: &pluginpb.StartRequest{}, state: &pluginpb.Status{}, ID: k.ID, Note: k.Note, all: s, asked: k.Asked, doubt: k.Doubt || k.ID == "", making: k.Doubt, known: k.Known}
		if err == nil {
			err = protojson.Unmarshal(k.Request, a.Request)
		}
		if err == nil {
			err = protojson.Unmarshal(k.Status, a.state)
		}
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", name, err)
		}
		if a.Note == nil {
			a.Note = map[string]any{}
		}
		for stream, size := range k.Sizes { // what came later comes again
			if a.Size(stream) > size {
				if err := os.Truncate(filepath.Join(a.folder(), stream), size); err != nil {
					return nil, err
				}
			}
		}
		s.byKey[a.Request.Key] = a
		s.touch(a)
	}
	return s, nil
}

func (a *Attempt) folder() string { return filepath.Join(a.all.dir, a.Request.Key) }

// Save keeps the attempt on disk.
func (a *Attempt) Save() error {
	request, err := protojson.Marshal(a.Request)
	if err != nil {
		return err
	}
	a.all.mu.Lock()
	state, err := protojson.Marshal(a.state)
	a.all.mu.Unlock()
	if err != nil {
		return err
	}
	data, err := json.Marshal(kept{request, state, a.ID, a.Note, a.asked, a.doubt, a.known, map[string]int64{"stdout": a.Size("stdout"), "stderr": a.Size("stderr")}})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.folder(), 0o700); err != nil {
		return err
	}
	name := filepath.Join(a.folder(), "attempt.json")
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Write adds to a stream, "stdout" or "stderr".
func (a *Attempt) Write(stream string, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(a.folder(), stream), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	most := a.Request.OutputCapBytes
	if info, err := f.Stat(); err == nil && most > 0 && info.Size() > most {
		return nil // the host ends it
	}
	_, err = f.Write(data)
	return err
}

// Size is how much of a stream there is.
func (a *Attempt) Size(stream string) int64 {
	info, err := os.Stat(filepath.Join(a.folder(), stream))
	if err != nil {
		return 0
	}
	return info.Size()
}

// touch tells of a change. The lock is held, or nobody else is there yet.
func (s *attempts) touch(a *Attempt) {
	s.count++
	s.serial[a.Request.Key] = s.count
	close(s.changed)
	s.changed = make(chan struct{})
}

// update changes what is said of the attempt.
func (a *Attempt) update(change func(s *pluginpb.Status)) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.state.State == pluginpb.State_STATE_ENDED {
		return
	}
	before := a.state.String()
	change(a.state)
	a.state.Reason = cut(a.state.Reason, 240)
	a.state.Native = cut(a.state.Native, 64)
	if a.state.String() != before {
		a.all.touch(a)
	}
}

func cut(s string, n int) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "")), " ")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

func (a *Attempt) ended() bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return a.state.State == pluginpb.State_STATE_ENDED
}

func (a *Attempt) pending() bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return a.state.State == pluginpb.State_STATE_PENDING
}

// runs tells whether the back end has it.
func (a *Attempt) runs() bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return a.known && a.state.State != pluginpb.State_STATE_ENDED
}

func (s *attempts) get(key string) *Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

// list is a sorted copy.
func (s *attempts) list() []*Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Attempt
	for _, a := range s.byKey {
		all = append(all, a)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Request.Key < all[j].Request.Key })
	return all
}

// ours counts attempts that have not ended, by pool.
func (s *attempts) ours() map[string]int {
	n := map[string]int{}
	for _, a := range s.list() {
		if !a.ended() {
			n[a.Request.Pool]++
		}
	}
	return n
}

// start begins an attempt once, however often it is called.
func (s *attempts) start(ctx context.Context, r *pluginpb.StartRequest) (*Attempt, error) {
	s.mu.Lock()
	a := s.byKey[r.Key]
	fresh := a == nil
	if fresh {
		a = &Attempt{Request: r, Note: map[string]any{}, all: s, doubt: r.Again}
		a.state = &pluginpb.Status{Key: r.Key, Fence: r.Fence, State: pluginpb.State_STATE_PENDING}
		a.turn.Lock()
		s.byKey[r.Key] = a
	}
	s.mu.Unlock()
	if !fresh {
		a.turn.Lock()
	}
	defer a.turn.Unlock()
	if a.known || a.ended() {
		return a, nil
	}
	err := a.begin(ctx)
	if err != nil && !a.doubt && final(err) {
		if rerr := s.backend.Remove(ctx, a); rerr != nil { // what was prepared
			slog.Warn("can't clean up after an attempt that did not begin", "attempt", r.Key, "err", rerr)
		}
		s.forget(a)
	}
	return a, err
}

// final tells whether the host takes an error of Start as the attempt's end.
func final(err error) bool {
	switch status.Code(err) {
	case codes.NotFound, codes.Aborted, codes.AlreadyExists, codes.Unauthenticated, codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false
	}
	return true
}

// begin looks for the attempt where it may be there, else starts it.
func (a *Attempt) begin(ctx context.Context) error {
	if a.doubt {
		id, err := a.all.backend.Find(ctx, a)
		if err != nil {
			return err
		}
		if id != "" {
			return a.began(id)
		}
		if a.looks++; a.looks < 4 && a.making {
			return status.Error(codes.Unavailable, "the back end did not say whether it took it: it is looked for")
		}
	}
	a.doubt, a.making, a.looks = true, true, 0 // until it says otherwise
	if err := a.Save(); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	id, err := a.all.backend.Start(ctx, a)
	if err != nil {
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown:
			a.doubt = !unsent(err)
		default:
			a.doubt = false
		}
		if serr := a.Save(); serr != nil {
			slog.Error("can't keep an attempt", "attempt", a.Request.Key, "err", serr)
		}
		return err
	}
	return a.began(id)
}

func (a *Attempt) began(id string) error {
	a.all.mu.Lock()
	a.ID, a.known, a.doubt = id, true, false
	a.all.touch(a)
	a.all.mu.Unlock()
	return a.Save()
}

func (s *attempts) forget(a *Attempt) {
	s.mu.Lock()
	delete(s.byKey, a.Request.Key)
	delete(s.serial, a.Request.Key)
	s.mu.Unlock()
	os.RemoveAll(a.folder())
}

// run polls the back end until ctx ends.
func (s *attempts) run(ctx context.Context) {
	for sleep(ctx, s.every) == nil {
		var all []*Attempt
		for _, a := range s.list() {
			if a.runs() {
				all = append(all, a)
			}
		}
		if len(all) == 0 {
			continue
		}
		seen, err := s.backend.Poll(ctx, all)
		if err != nil {
			slog.Warn("can't see how attempts stand", "err", err)
			continue
		}
		var wg sync.WaitGroup
		slots := make(chan struct{}, 8)
		for _, a := range all {
			look, ok := seen[a]
			if !ok {
				continue
			}
			wg.Add(1)
			slots <- struct{}{}
			go func() {
				defer func() { <-slots; wg.Done() }()
				a.turn.Lock()
				defer a.turn.Unlock()
				a.see(ctx, look)
			}()
		}
		wg.Wait()
	}
}

// see takes a look at the back end into account.
func (a *Attempt) see(ctx context.Context, look Seen) {
	if a.ended() {
		return
	}
	if look.Job != nil {
		a.Note["job"] = look.Job
	}
	if look.Gone {
		if a.gone++; a.gone < 3 {
			return
		}
		look.State = State{"ended", "lost", "the back end has it no more"}
		if a.asked {
			look.State.Outcome = "stopped"
		}
	} else {
		a.gone = 0
	}
	over := look.State.State == "ended"
	if !over && a.pending() {
		a.tell(look) // that it runs is known before what it prints, which may come slowly
	}
	if look.State.State != "pending" || a.asked {
		if err := a.all.backend.Logs(ctx, a, over && look.State.Outcome != "memory" && look.State.Outcome != "stopped"); err != nil && !(over && isAbsent(err)) {
			slog.Warn("can't read the output of an attempt", "attempt", a.Request.Key, "err", err)
			if a.mute.IsZero() {
				a.mute = time.Now()
			}
			if over && time.Since(a.mute) < patience {
				return // its end can wait
			}
		} else {
			a.mute = time.Time{}
		}
	}
	if j, ok := a.all.backend.(Judger); ok {
		look = j.Judge(a, look)
	}
	a.tell(look)
	if over {
		if err := a.Save(); err != nil {
			slog.Error("can't keep an attempt", "attempt", a.Request.Key, "err", err)
		}
	}
}

// tell says how it stands.
func (a *Attempt) tell(look Seen) {
	judged, over := a.judge(look), look.State.State == "ended"
	a.update(func(s *pluginpb.Status) {
		s.State, s.Native, s.Reason = judged.State, judged.Native, judged.Reason
		s.Outcome, s.ExitCode = judged.Outcome, judged.ExitCode
		if s.StartedMs == 0 && s.State != pluginpb.State_STATE_PENDING {
			s.StartedMs = time.Now().UnixMilli()
			if !look.Started.IsZero() {
				s.StartedMs = look.Started.UnixMilli()
			}
			if over && look.Seconds > 0 {
				s.StartedMs = time.Now().Add(-time.Duration(look.Seconds * float64(time.Second))).UnixMilli()
			}
		}
		if s.State == pluginpb.State_STATE_ENDED {
			s.EndedMs = time.Now().UnixMilli()
		}
		s.CpuMs, s.MemoryBytes = max(s.CpuMs, int64(look.CPU*1000)), max(s.MemoryBytes, look.Memory)
		out, errs := a.Size("stdout"), a.Size("stderr")
		s.StdoutBytes, s.StderrBytes = &out, &errs
	})
}

// judge says what the back end's words mean.
func (a *Attempt) judge(look Seen) *pluginpb.Status {
	s := &pluginpb.Status{Native: look.Word, Reason: look.State.Reason, ExitCode: int32(look.Code)}
	switch look.State.State {
	case "pending":
		s.State = pluginpb.State_STATE_PENDING
	case "suspended":
		s.State = pluginpb.State_STATE_SUSPENDED
	case "ended":
		s.State = pluginpb.State_STATE_ENDED
	default:
		s.State = pluginpb.State_STATE_RUNNING
	}
	if s.State != pluginpb.State_STATE_ENDED {
		return s
	}
	s.Outcome = map[string]pluginpb.Outcome{
		"ok": pluginpb.Outcome_OUTCOME_OK, "failed": pluginpb.Outcome_OUTCOME_FAILED, "time_limit": pluginpb.Outcome_OUTCOME_TIME_LIMIT,
		"memory": pluginpb.Outcome_OUTCOME_MEMORY, "output": pluginpb.Outcome_OUTCOME_OUTPUT, "stopped": pluginpb.Outcome_OUTCOME_STOPPED,
	}[look.State.Outcome]
	if s.Outcome == pluginpb.Outcome_OUTCOME_UNSPECIFIED {
		s.Outcome = pluginpb.Outcome_OUTCOME_SITE
	}
	switch {
	case s.Outcome == pluginpb.Outcome_OUTCOME_OK && look.Code != 0:
		s.Outcome, s.Reason = pluginpb.Outcome_OUTCOME_FAILED, failure(look.Code)
	case s.Outcome == pluginpb.Outcome_OUTCOME_FAILED && look.Known && look.Code != 0:
		s.Reason = failure(look.Code)
	case s.Outcome == pluginpb.Outcome_OUTCOME_STOPPED && !a.asked:
		s.Outcome, s.Reason = pluginpb.Outcome_OUTCOME_SITE, "it was ended at its back end, not by its buyer"
	}
	if s.Outcome != pluginpb.Outcome_OUTCOME_OK && s.ExitCode <= 0 {
		s.ExitCode = 255
		if s.Outcome == pluginpb.Outcome_OUTCOME_STOPPED || s.Outcome == pluginpb.Outcome_OUTCOME_MEMORY {
			s.ExitCode = 137
		}
	}
	if s.ExitCode > 255 || s.ExitCode < 0 {
		s.ExitCode = 255
	}
	return s
}

func failure(code int) string {
	switch {
	case code == 127:
		return "exit code 127: its program was not found"
	case code > 128 && code < 128+65:
		return fmt.Sprintf("exit code %d: ended by signal %d", code, code-128)
	}
	return fmt.Sprintf("exit code %d", code)
}

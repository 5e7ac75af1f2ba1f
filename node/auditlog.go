package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// The audit log is what this peer ran for whom, and what its operator did: JSON
// lines, appended, in the folder audit/. Environments of tasks never get there,
// and of commands only the program's name and a digest of the whole.
//
// What an operator does is synced before it is answered; the rest within a
// second, so that a crash of the machine loses at most that. The ledger has the
// trades all the same.
const (
	auditDir       = "audit"
	auditFile      = "audit.jsonl" // the newest; audit.1.jsonl is the one before, and so on
	auditFileBytes = 16 << 20
	auditFiles     = 8
	auditSync      = time.Second
	maxAuditLine   = 8 << 10
	maxAuditAnswer = 20_000
)

type auditLog struct {
	dir     string
	log     *slog.Logger
	most    int64 // bytes of a file
	mu      sync.Mutex
	f       *os.File
	size    int64
	last    int64 // ID of the last entry: Unix ns, made unique
	dirty   bool
	failing bool
}

func openAuditLog(dir string, log *slog.Logger) (*auditLog, error) {
	a := &auditLog{dir: dir, log: log, most: auditFileBytes}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = a.open()
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't open the audit log: %w; what runs for whom must not go unrecorded", err)
	}
	return a, nil
}

func (a *auditLog) path(i int) string {
	if i == 0 {
		return filepath.Join(a.dir, auditFile)
	}
	return filepath.Join(a.dir, fmt.Sprintf("audit.%d.jsonl", i))
}

func (a *auditLog) open() error {
	f, err := os.OpenFile(a.path(0), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 { // a crash may have cut the last line off
		var end [1]byte
		if _, err = f.ReadAt(end[:], info.Size()-1); err == nil && end[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
		}
	}
	if err == nil {
		info, err = f.Stat()
	}
	if err != nil {
		f.Close()
		return err
	}
	a.f, a.size = f, info.Size()
	return nil
}

// rotate begins a new file. The oldest is deleted.
func (a *auditLog) rotate() error {
	a.f.Sync() // what fails shows with the next write
	a.f.Close()
	a.f = nil
	for i := auditFiles - 1; i > 0; i-- {
		if err := os.Rename(a.path(i-1), a.path(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return a.open()
}

// write appends an entry. What can't be written is logged: what runs goes on.
func (a *auditLog) write(e api.AuditEntry, sync bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.last = max(a.last+1, now.UnixNano())
	e.ID, e.At = strconv.FormatInt(a.last, 10), now.UTC()
	line, err := json.Marshal(e)
	if err == nil && len(line) > maxAuditLine {
		err = fmt.Errorf("the entry has %d bytes", len(line))
	}
	if err == nil && a.f == nil {
		err = a.open()
	}
	if err == nil && a.size+int64(len(line)) > a.most && a.size > 0 {
		err = a.rotate()
	}
	if err == nil {
		var n int
		n, err = a.f.Write(append(line, '\n'))
		a.size += int64(n)
		a.dirty = true
		if err != nil { // a part may stand there, if the disk is full: open ends that line
			a.f.Close()
			a.f = nil
		}
	}
	if err == nil && sync {
		err = a.f.Sync()
		a.dirty = err != nil
	}
	switch {
	case err != nil && !a.failing:
		a.log.Error("can't write the audit log: what runs for whom goes unrecorded until it can", "folder", a.dir, "error", err)
	case err == nil && a.failing:
		a.log.Warn("the audit log is written again", "folder", a.dir)
	}
	a.failing = err != nil
}

// run syncs what was written, until ctx ends.
func (a *auditLog) run(ctx context.Context) error {
	for pause(ctx, auditSync) {
		a.sync()
	}
	a.sync()
	return nil
}

func (a *auditLog) sync() {
	a.mu.Lock()
	f, dirty := a.f, a.dirty
	a.dirty = false
	a.mu.Unlock()
	if dirty && f != nil {
		f.Sync() // outside the lock: no task waits for it. What fails shows with the next write
	}
}

func (a *auditLog) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f == nil {
		return nil
	}
	err := errors.Join(a.f.Sync(), a.f.Close())
	a.f = nil
	return err
}

// read returns entries, newest first, at most maxAuditAnswer of those that are wanted.
func (a *auditLog) read(since time.Time, want func(api.AuditEntry) bool) ([]api.AuditEntry, error) {
	var files []*os.File
	a.mu.Lock()
	for i := range auditFiles {
		if f, err := os.Open(a.path(i)); err == nil {
			files = append(files, f)
		}
	}
	a.mu.Unlock()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	list := []api.AuditEntry{}
	for _, f := range files {
		var part []api.AuditEntry
		r, older := bufio.NewReader(io.LimitReader(f, 2*auditFileBytes)), false
		for {
			line, err := r.ReadBytes('\n')
			var e api.AuditEntry
			if json.Unmarshal(bytes.TrimSpace(line), &e) == nil && e.ID != "" { // a crash may have damaged a line
				if e.At.Before(since) {
					older = true
				} else if want(e) {
					part = append(part, e)
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, pcm.Errorf(pcm.Internal, "can't read the audit log: %w", err)
			}
		}
		for i := len(part) - 1; i >= 0; i-- {
			if len(list) == maxAuditAnswer {
				return list, nil
			}
			list = append(list, part[i])
		}
		if older {
			break
		}
	}
	return list, nil
}

// operator notes what an operator did.
func (a *auditLog) operator(ctx context.Context, event string, e api.AuditEntry) {
	e.Event, e.Who = event, api.Caller(ctx)
	a.write(e, true)
}

// AuditLog is what was run here for whom, newest first.
func (n *Node) AuditLog(_ context.Context, q api.AuditQuery) ([]api.AuditEntry, error) {
	account := q.Account
	if account != "" {
		who, err := n.party(account)
		if err != nil {
			return nil, err
		}
		account = who
	}
	return n.audit.read(q.Since, func(e api.AuditEntry) bool {
		return (account == "" || string(e.Buyer) == account || string(e.Peer) == account || e.Subject == account) && (q.Event == "" || e.Event == q.Event)
	})
}

// entry is what the audit log says of a trade; more of it once its spec is here.
func (s *seller) entry(x *execution, event string) api.AuditEntry {
	t := x.terms
	e := api.AuditEntry{
		Event: event, Buyer: t.Buyer, Peer: t.Driver, Job: t.Job, Trade: t.Trade(), Attempt: t.Attempt, Pool: t.Pool, Adapter: t.Adapter,
	}
	if h, ok := s.n.specs.find(t.Job); ok && h.digest == t.Spec && t.Step < len(h.spec.Steps) {
		st := h.spec.Steps[t.Step]
		e.Step, e.Image = st.Name, st.Image
		if len(st.Command) > 0 {
			e.Program = clip(filepath.Base(st.Command[0]))
		} else {
			e.Program = clip(filepath.Base(st.Module))
		}
		e.Command = pcm.DigestOf(pcm.MustMarshal([]any{st.Command, st.ModuleAt, st.Args}))
	}
	return e
}

// note writes down what became of one attempt. For an end, the caller doesn't
// hold the seller's lock.
func (s *seller) note(x *execution, event string, r pcm.Result) {
	if s.n.audit == nil {
		return
	}
	e := s.entry(x, event)
	if event == "ended" && r.Outcome == pcm.OutcomeSeller {
		s.mu.Lock()
		if why, ok := x.kill[r.Index]; ok && r.Reason == clip(why) {
			e.Event = "killed"
		}
		s.mu.Unlock()
	}
	e.Task = &r.Index
	if event != "started" {
		e.Outcome, e.Reason = r.Outcome, r.Reason
		if r.Usage != (pcm.Usage{}) {
			e.Usage = &r.Usage
		}
		if r.ExitCode != 0 || r.Outcome == pcm.OutcomeOK {
			e.ExitCode = &r.ExitCode
		}
	}
	s.n.audit.write(e, false)
}

// noteSession writes down that somebody worked with an attempt: not with which
// command, which may hold secrets.
func (s *seller) noteSession(ctx context.Context, x *execution, req attemptRequest, who asker, err error) {
	if s.n.audit == nil {
		return
	}
	e := s.entry(x, string(req.Request.Op))
	e.Subject, e.Task = string(who.account), &req.Index
	if who.own {
		e.Who = api.Caller(ctx)
	} else {
		e.Peer = who.peer
	}
	if err != nil {
		e.Reason = clip(err.Error())
	}
	s.n.audit.write(e, false)
}

// noteTrade writes down that a trade was taken up.
func (s *seller) noteTrade(x *execution, live pcm.Spans, known map[int]adapters.Status) {
	event := "awarded"
	if len(known) > 0 {
		event = "adopted"
	}
	if s.n.audit == nil {
		return
	}
	e := s.entry(x, event)
	e.Tasks = spansText(live)
	s.n.audit.write(e, false)
}

// spansText writes task indexes down: "0-3,7".
func spansText(spans pcm.Spans) string {
	var b bytes.Buffer
	for i, r := range spans {
		if b.Len() > 200 {
			b.WriteString(",…")
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d", r.Lo)
		if r.Hi > r.Lo+1 {
			fmt.Fprintf(&b, "-%d", r.Hi-1)
		}
	}
	return b.String()
}

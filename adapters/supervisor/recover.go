package supervisor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"golang.org/x/sys/unix"
)

// reattach is the lease of an attempt that runs elsewhere and whose supervisor
// died: what a daemon needs to find the new one and extend it.
const reattach = 10 * time.Second

// recover loads what earlier supervisors left. Attempts without an end were
// running when their supervisor died: what survives of them here is killed, what
// runs elsewhere is taken up again.
func (s *Server) recover() error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "tasks"))
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't read the folder of attempts: %w", err)
	}
	var lost, remote []*task
	unfinished := map[string][]adapters.Key{}
	for _, e := range entries {
		k, err := adapters.ParseKey(e.Name())
		if err != nil || !e.IsDir() {
			continue
		}
		f := folderOf(s.cfg.Dir, e.Name())
		if st, err := f.loadStatus(); err == nil && st.Key == e.Name() {
			s.adopt(f, st)
			continue
		}
		t, err := f.loadTask()
		if err != nil || t.Key != e.Name() {
			s.log.Warn("removed a broken attempt folder", "attempt", e.Name(), "err", err)
			f.remove()
			continue
		}
		unfinished[t.Runner] = append(unfinished[t.Runner], k)
		if _, ok := s.runners[t.Runner].(Remote); ok {
			remote = append(remote, t)
		} else {
			lost = append(lost, t)
		}
	}
	for name, r := range s.runners {
		if err := r.Sweep(unfinished[name]); err != nil {
			s.log.Warn("can't sweep", "runner", name, "err", err)
		}
	}
	for _, t := range lost {
		f := folderOf(s.cfg.Dir, t.Key)
		st := status{
			Key: t.Key, Runner: t.Runner, Fence: t.Fence, State: adapters.Ended, StartedN: t.PreparedN,
			Outcome: pcm.OutcomeSeller, ExitCode: 128 + int(unix.SIGKILL), Reason: "supervisor ended while the task ran",
		}
		if err := f.finish(st); err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't record the end of attempt %s: %w", t.Key, err)
		}
		s.adopt(f, st)
	}
	for _, w := range remote {
		if err := s.resume(w); err != nil {
			return err
		}
	}
	return nil
}

// resume takes up an attempt that runs elsewhere.
func (s *Server) resume(w *task) error {
	t, err := w.open()
	if err != nil {
		return err
	}
	if t.OutputCap == 0 {
		t.OutputCap = s.cfg.OutputCap
	}
	// Its streams are read anew from their begin.
	f := folderOf(s.cfg.Dir, w.Key)
	for _, stream := range []adapters.StreamName{adapters.Stdout, adapters.Stderr} {
		if err := os.Remove(f.stream(stream)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pcm.Errorf(pcm.Unavailable, "can't begin the %s of attempt %s anew: %w", stream, w.Key, err)
		}
	}
	t.Deadline = adapters.Now().Add(reattach)
	begun, startedN := f.loadBegin() // its time limit goes on
	s.mu.Lock()                      // others that were taken up may end already
	h := s.admit(w, s.runners[w.Runner], t, true)
	s.live[h.key] = h.attempt
	h.attempt.begun, h.status.StartedN = begun, startedN
	s.alarm.by(h.deadline)
	h.starting = nil
	s.mu.Unlock()
	go s.run(h)
	return nil
}

func (s *Server) adopt(f folder, st status) {
	s.attempts[st.Key] = &attempt{key: st.Key, folder: f, status: st}
}

// begin is when an attempt that runs elsewhere began to run: as stored in begin.cbor.
type begin struct {
	Boot string            `cbor:"1,keyasint"` // of the machine
	At   adapters.BootTime `cbor:"2,keyasint"`
	AtN  int64             `cbor:"3,keyasint"` // wall clock, Unix nanoseconds
}

func (f folder) beginFile() string { return filepath.Join(string(f), "begin.cbor") }

// storeBegin records a begin. Like an end it is not synced.
func (f folder) storeBegin(at adapters.BootTime, wall int64) error {
	tmp := f.beginFile() + ".new"
	if err := f.write(tmp, pcm.MustMarshal(begin{bootID(), at, wall})); err != nil {
		return err
	}
	return os.Rename(tmp, f.beginFile())
}

// loadBegin is when the attempt began to run, on this boot's clock; zeros if it did
// not, or that was not recorded. Since another boot the wall's clock must do.
func (f folder) loadBegin() (adapters.BootTime, int64) {
	var b begin
	data, err := os.ReadFile(f.beginFile())
	if err != nil || pcm.Unmarshal(data, &b) != nil {
		return 0, 0
	}
	if b.Boot != bootID() {
		b.At = adapters.Now().Add(-max(0, time.Since(time.Unix(0, b.AtN))))
	}
	return b.At, b.AtN
}

// bootID names this boot of the machine.
var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // no other than itself is known
	}
	return strings.TrimSpace(string(id))
})

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"golang.org/x/sys/unix"
)

// ErrRunning is returned by Serve when another supervisor serves the folder.
var ErrRunning = pcm.Errorf(pcm.Conflict, "another supervisor serves this folder")

// Config is what Serve needs.
type Config struct {
	Dir     string
	Runners []Runner
	Version string       // of the build and its settings; see ClientConfig
	Logger  *slog.Logger // default: JSON to Dir/supervisor.log, bounded

	Idle        time.Duration // how long to wait for a daemon when nothing runs; default 30 s
	MaxAttempts int           // attempts kept, ended ones included; default 200,000
	MaxRunning  int           // attempts that run or wait at once; default 20,000
	OutputCap   pcm.Bytes     // of tasks that name none; default 1 GiB
}

func (c *Config) defaults() {
	if c.Idle <= 0 {
		c.Idle = 30 * time.Second
	}
	if c.MaxAttempts <= 0 {
		c.MaxAttempts = 200_000
	}
	if c.MaxRunning <= 0 {
		c.MaxRunning = 20_000
	}
	if c.OutputCap <= 0 {
		c.OutputCap = 1 << 30
	}
}

// Server is a supervisor at work.
type Server struct {
	cfg     Config
	log     *slog.Logger
	runners map[string]Runner
	alarm   *alarm
	ctx     context.Context // of all tasks: ended when the supervisor ends
	tasks   sync.WaitGroup
	turns   *turns

	mu       sync.Mutex
	attempts map[string]*attempt // all
	live     map[string]*attempt // those that have not ended
	running  int                 // len(live), and those being prepared
	last     adapters.Task       // that was admitted: the next one shares with it what is the same
	peers    map[*peer]bool
	retired  bool
	changed  chan struct{} // capacity 1: running or peers changed
}

// Serve runs the supervisor of cfg.Dir until ctx ends or there is nothing left
// to do: no daemon connected and no task running for cfg.Idle, or a daemon has
// asked it to retire. Tasks that still run when ctx ends are killed. It returns
// ErrRunning if another one serves the folder.
func Serve(ctx context.Context, cfg Config) error {
	cfg.defaults()
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "folder %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	if err := sealDescriptors(); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't keep inherited files from tasks: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "tasks"), 0o700); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make the supervisor's folder: %w", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	log := cfg.Logger
	if log == nil {
		file, err := openLog(logFile(dir))
		if err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't open the supervisor's log: %w", err)
		}
		defer file.Close()
		log = slog.New(slog.NewJSONHandler(file, nil))
	}
	alarm, err := newAlarm()
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "no timer: %w", err)
	}
	defer alarm.close()
	taskCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	s := &Server{
		cfg: cfg, log: log, runners: map[string]Runner{}, alarm: alarm, ctx: taskCtx,
		attempts: map[string]*attempt{}, live: map[string]*attempt{}, peers: map[*peer]bool{}, changed: make(chan struct{}, 1),
	}
	s.turns = newTurns(s.again)
	for _, r := range cfg.Runners {
		s.runners[r.Name()] = r
	}
	if err := s.recover(); err != nil {
		return err
	}
	l, err := listen(dir)
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't listen on the supervisor's socket: %w", err)
	}
	bound, err := os.Lstat(socketFile(dir))
	if err != nil {
		l.Close()
		return pcm.Errorf(pcm.Unavailable, "can't find the supervisor's socket: %w", err)
	}
	log.Info("serving", "dir", dir, "pid", os.Getpid(), "version", cfg.Version)
	var conns sync.WaitGroup
	conns.Go(func() { s.accept(l) })

	s.loop(ctx)

	// New daemons must find no socket, so that they start a new supervisor. When the
	// folder was moved and made anew, as a restore does, the path leads to another's socket.
	if now, err := os.Lstat(socketFile(dir)); err == nil && os.SameFile(now, bound) {
		os.Remove(socketFile(dir))
	}
	l.Close()
	s.endAll(cancel, &verdict{pcm.OutcomeSeller, "supervisor was told to end", false})
	s.tasks.Wait()
	for name, r := range s.runners {
		if err := r.Close(context.WithoutCancel(ctx)); err != nil {
			log.Warn("can't close", "runner", name, "err", err)
		}
	}
	lock.Close() // before the daemons learn of the end, and start the next one
	s.mu.Lock()
	for p := range s.peers {
		p.finish()
	}
	s.mu.Unlock()
	conns.Wait()
	log.Info("ended", "dir", dir)
	return nil
}

// endAll ends what runs; nothing more begins.
func (s *Server) endAll(cancel context.CancelCauseFunc, v *verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	cancel(v)
	for _, a := range s.live {
		s.turns.wake(a.live, true)
	}
}

// sealDescriptors makes sure that no file that we have inherited is passed on
// to a task.
func sealDescriptors() error {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil { // since Linux 5.11
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

// lockFolder takes the folder's lock, which lives as long as the file is open.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "supervisor.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't open the supervisor's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, pcm.Errorf(pcm.Unavailable, "can't lock the supervisor's folder: %w", err)
	}
	return f, nil
}

// loop watches leases and limits until the supervisor is to end.
func (s *Server) loop(ctx context.Context) {
	idle := time.NewTimer(s.cfg.Idle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.alarm.C:
			s.expire()
		case <-s.changed:
			idle.Reset(s.cfg.Idle)
			s.mu.Lock()
			end := s.retired && s.running == 0
			s.mu.Unlock()
			if end {
				return
			}
		case <-idle.C:
			s.mu.Lock()
			end := s.running == 0 && len(s.peers) == 0
			s.retired = s.retired || end
			s.mu.Unlock()
			if end {
				return
			}
			idle.Reset(s.cfg.Idle)
		}
	}
}

// touch tells loop that running, peers or retired changed. s.mu is held.
func (s *Server) touch() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// expire ends every attempt whose moment is over and sets the alarm for the next.
func (s *Server) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := adapters.Now()
	var next adapters.BootTime
	for _, a := range s.live {
		at, v := a.due()
		if at <= now {
			s.cancel(a.live, v)
		} else if next == 0 || at < next {
			next = at
		}
	}
	if next != 0 {
		s.alarm.by(next)
	}
}

// admit makes the attempt of a task known; it is not live yet. s.mu is held.
func (s *Server) admit(w *task, r Runner, t adapters.Task, again bool) *handed {
	share(&t, &s.last)
	s.last = t
	a := &attempt{
		key: w.Key, folder: folderOf(s.cfg.Dir, w.Key), starting: make(chan struct{}),
		gpus: t.Resources.GPU, deadline: t.Deadline, limit: t.Limit,
		status: status{Key: w.Key, Runner: r.Name(), Fence: t.Fence, State: adapters.Prepared},
	}
	a.live = s.hand(a, r, t, again)
	s.attempts[a.key] = a
	s.running++
	s.tasks.Add(1)
	return a.live
}

// start begins an attempt; see adapters.Adapter.
func (s *Server) start(ctx context.Context, runner string, w *task) error {
	if w == nil {
		return pcm.Errorf(pcm.Invalid, "start without a task")
	}
	t, err := w.open()
	if err != nil {
		return err
	}
	r := s.runners[runner]
	if r == nil {
		return pcm.Errorf(pcm.Invalid, "this supervisor has no runner %q", runner)
	}
	if err := checkTask(t); err != nil {
		return err
	}
	if err := r.Check(t); err != nil {
		return err
	}
	if t.OutputCap == 0 {
		t.OutputCap = s.cfg.OutputCap
	}
	s.mu.Lock()
	if a := s.attempts[w.Key]; a != nil {
		starting := a.starting
		s.mu.Unlock()
		if starting == nil {
			return nil
		}
		select {
		case <-starting:
			return a.err
		case <-ctx.Done():
			return pcm.Errorf(pcm.Unavailable, "attempt %s is still being prepared", w.Key)
		}
	}
	if err := s.room(t); err != nil {
		s.mu.Unlock()
		return err
	}
	w.Runner, w.PreparedN = runner, time.Now().UnixNano()
	h := s.admit(w, r, t, false)
	starting := h.starting
	s.mu.Unlock()

	if err := h.folder.create(w); err != nil {
		h.end(nil)
		s.mu.Lock()
		delete(s.attempts, h.key)
		s.running--
		h.live, h.err = nil, err
		s.touch()
		s.mu.Unlock()
		s.tasks.Done()
		close(starting)
		return err
	}
	s.mu.Lock()
	s.live[h.key] = h.attempt
	at, _ := h.due() // it may have been asked to stop already
	s.alarm.by(at)
	h.starting = nil
	s.mu.Unlock()
	close(starting)
	go s.run(h)
	return nil
}

// room refuses an attempt that there is no place or time for. s.mu is held.
func (s *Server) room(t adapters.Task) error {
	switch {
	case s.retired:
		return pcm.Errorf(pcm.Unavailable, "the supervisor is ending: try again")
	case s.running >= s.cfg.MaxRunning:
		return pcm.Errorf(pcm.Busy, "%d attempts run here: no more at once", s.running)
	case len(s.attempts) >= s.cfg.MaxAttempts:
		return pcm.Errorf(pcm.Busy, "%d attempts are kept here: remove some that have ended", len(s.attempts))
	case t.Deadline <= adapters.Now():
		return pcm.Errorf(pcm.Refused, "the lease of attempt %s is over already", t.Key)
	}
	return nil
}

// stop asks an attempt to end, and kills it after grace.
func (s *Server) stop(key string, grace time.Duration, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	if a == nil {
		return pcm.Errorf(pcm.NotFound, "no attempt %s here", key)
	}
	if a.live == nil {
		return nil
	}
	first := a.force == 0
	if first {
		a.stopped = cut(reason, maxReason)
	}
	force := adapters.Now().Add(max(grace, 0))
	if first || force < a.force {
		a.force = force
	}
	if grace <= 0 {
		s.cancel(a.live, &verdict{pcm.OutcomeStopped, a.stopped, true})
		return nil
	}
	if first { // who was asked by TERM may take a second one for "at once"
		a.live.stop <- Stop{}
		s.turns.wake(a.live, false)
	}
	s.alarm.by(a.force)
	return nil
}

// halt suspends an attempt, or lets it go on.
func (s *Server) halt(key string, on bool) error {
	s.mu.Lock()
	a := s.attempts[key]
	if a == nil {
		s.mu.Unlock()
		return pcm.Errorf(pcm.NotFound, "no attempt %s here", key)
	}
	r, ok := s.runners[a.status.Runner].(Halter)
	s.mu.Unlock()
	if !ok {
		return pcm.Errorf(pcm.Refused, "attempt %s can't be suspended: its runner has no means to", key)
	}
	a.halting.Lock() // what is reported last is what was done last
	defer a.halting.Unlock()
	s.mu.Lock()
	state := a.status.State
	s.mu.Unlock()
	if state != adapters.Running && state != adapters.Suspended {
		return pcm.Errorf(pcm.Conflict, "attempt %s is %s: only what runs can be suspended or resumed", key, state)
	}
	k, err := adapters.ParseKey(key)
	if err != nil {
		return err
	}
	if err := r.Halt(k, on); err != nil {
		return err
	}
	if on {
		s.report(a, adapters.Suspended, "", "suspended by its owner or its seller")
	} else {
		s.report(a, adapters.Running, "", "")
	}
	return nil
}

// remove forgets an ended attempt.
func (s *Server) remove(key string) error {
	if _, err := adapters.ParseKey(key); err != nil {
		return err
	}
	s.mu.Lock()
	a := s.attempts[key]
	if a != nil && a.status.State != adapters.Ended {
		s.mu.Unlock()
		return pcm.Errorf(pcm.Conflict, "attempt %s has not ended: stop it first", key)
	}
	s.mu.Unlock()
	if a == nil {
		return nil
	}
	// The folder goes first: a start of the same key waits for that no more than
	// it would for any other, since the attempt is known until then.
	if err := a.folder.remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pcm.Errorf(pcm.Unavailable, "can't delete what attempt %s left: %w", key, err)
	}
	s.mu.Lock()
	if s.attempts[key] == a {
		delete(s.attempts, key)
	}
	s.mu.Unlock()
	return nil
}

func (s *Server) extend(leases []lease) error {
	if len(leases) > maxLeases {
		return pcm.Errorf(pcm.TooLarge, "%d leases in one request: at most %d", len(leases), maxLeases)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range leases {
		if a := s.live[l.Key]; a != nil && l.Deadline > a.deadline {
			a.deadline = l.Deadline // the alarm rings for the old one, and finds the new
		}
	}
	return nil
}

// list gives one page of the runner's attempts, sorted, after the given key.
func (s *Server) list(runner, after string) (page []status, more bool) {
	s.mu.Lock()
	for _, a := range s.attempts {
		if a.status.Runner == runner && a.key > after {
			st := a.status
			if a.begun != 0 && st.State != adapters.Ended {
				st.Usage.WallMS = time.Duration(adapters.Now() - a.begun).Milliseconds()
				st.Usage.GPUMS = a.gpus * st.Usage.WallMS
			}
			page = append(page, st)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(page, byKey)
	if len(page) > listPage {
		page, more = page[:listPage], true
	}
	return page, more
}

func (s *Server) retire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running > 0 {
		return pcm.Errorf(pcm.Busy, "%d attempts run here", s.running)
	}
	s.retired = true
	s.touch()
	return nil
}

// broadcast pushes a status to every daemon. s.mu is held.
func (s *Server) broadcast(st status) {
	for p := range s.peers {
		p.send(&message{Op: opEvent, Statuses: []status{st}})
	}
}

func (s *Server) welcome(protocol int) *welcome {
	w := &welcome{Protocol: protocol, Version: s.cfg.Version, PID: os.Getpid(), Facts: map[string]Facts{}}
	for name, r := range s.runners {
		w.Facts[name] = r.Facts()
	}
	s.mu.Lock()
	w.Running = s.running
	s.mu.Unlock()
	return w
}

func socketFile(dir string) string { return filepath.Join(dir, "supervisor.sock") }
func logFile(dir string) string    { return filepath.Join(dir, "supervisor.log") }

// listen binds the socket, also where its path is longer than a socket address may be.
func listen(dir string) (net.Listener, error) {
	if err := os.Remove(socketFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	name, done, err := shortName(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(socketFile(dir), 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// shortName is a name of the socket that fits into the 108 bytes of an address.
func shortName(dir string) (name string, done func(), err error) {
	name = socketFile(dir)
	if len(name) < 100 {
		return name, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), strings.TrimPrefix(name, dir+"/")), func() { d.Close() }, nil
}

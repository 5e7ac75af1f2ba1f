package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// Versions of the contract that this host speaks.
const (
	versionMin = 1
	versionMax = 1
)

// host keeps the plug-in's process up, and hears what it tells of attempts.
type host struct {
	cfg     Config
	folders folders
	log     *slog.Logger
	of      string

	mu        sync.Mutex
	link      *link         // nil: the plug-in can't be used now
	facts     facts         // valid while link is not nil
	trouble   string        // why, otherwise
	changed   chan struct{} // closed and replaced whenever link changes
	tracks    map[adapters.Key]*track
	known     map[adapters.Key]*told // what the plug-in told of
	view      int                    // counts watches
	snapshots int                    // that were complete, of the process as it is now
	foreign   int                    // statuses that were passed over
	warned    time.Time              // of those

	held     *held
	clearing sync.Mutex
}

// told is what is known of an attempt, followed or not.
type told struct {
	view  int // in which it was last told of
	ended bool
	alone time.Time // since when nobody follows it
}

const maxKnown = 200_000

func newHost(cfg Config, f folders) *host {
	return &host{
		cfg: cfg, folders: f, log: cfg.Logger, trouble: "it has yet to be started", changed: make(chan struct{}),
		of:     string(pcm.DigestOf(pcm.MustMarshal([]any{cfg.Command, cfg.User, string(cfg.Settings), cfg.Secrets, cfg.Instance}))),
		tracks: map[adapters.Key]*track{}, known: map[adapters.Key]*told{},
	}
}

// run keeps the plug-in up until ctx ends, then ends it.
func (h *host) run(ctx context.Context) {
	defer h.watchLog()()
	p := h.inherit(ctx)
	for wait := minBack; ; wait = min(2*wait, h.cfg.Times.Back) {
		began := time.Now()
		why := h.session(ctx, &p)
		h.down(why)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > h.cfg.Times.Back {
			wait = minBack
		}
		h.log.Warn("a plug-in can't be used: it is started anew", "plugin", h.cfg.Name, "reason", why, "in", wait.String())
		h.setTrouble(fmt.Sprintf("%s; it is started anew within %s", why, wait))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	if p != nil {
		p.terminate(h.cfg.Times.End)
	}
	h.setTrouble("its supervisor has ended")
}

const minBack = 200 * time.Millisecond

// inherit takes up what an earlier supervisor left: the process if it is of this
// configuration. Another one is ended.
func (h *host) inherit(context.Context) *process {
	s, err := loadState(h.folders.stateFile())
	if err != nil {
		return nil
	}
	p := adopt(s)
	if p != nil && s.Of != h.of {
		h.log.Info("ending a plug-in of other settings", "plugin", h.cfg.Name, "pid", s.PID)
		p.terminate(h.cfg.Times.End)
		return nil
	}
	return p
}

// session starts or adopts the process, and works with it until it can't any
// more. It returns why; *p is nil then, unless ctx has ended.
func (h *host) session(ctx context.Context, p **process) string {
	secrets, err := h.cfg.secrets()
	if err != nil {
		return err.Error()
	}
	if *p == nil {
		fresh, err := launch(h.cfg, h.folders, h.of, rand.Text())
		if err != nil {
			return err.Error()
		}
		*p = fresh
		starting := fresh.state
		starting.Trouble = errStarting.Error()
		if err := store(h.folders.stateFile(), starting); err != nil {
			h.log.Error("can't record a plug-in's process: should this supervisor be lost, it is not adopted", "plugin", h.cfg.Name, "err", err)
		}
	}
	proc := *p
	give := func(why string, grace time.Duration) string {
		if ctx.Err() == nil {
			proc.terminate(grace)
			*p = nil
		}
		return why
	}
	if err := proc.listening(ctx, h.cfg.Times.Listen); err != nil {
		return give(err.Error(), 0)
	}
	l := newLink(h.cfg.Name, proc.Socket, proc.UID)
	defer l.close()
	made, err := h.handshake(ctx, l, proc, secrets)
	if err != nil {
		return give(err.Error(), h.cfg.Times.End)
	}
	proc.Facts = made
	h.log.Info("a plug-in is up", "plugin", h.cfg.Name, "pid", proc.PID, "adopted", proc.cmd == nil, "about", made.About)
	h.up(l, made, proc)

	// Its end cuts all calls.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	heard := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var mu sync.Mutex // of heard
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil {
			err := h.watch(ctx, l, func() { mu.Lock(); heard = time.Now(); mu.Unlock() })
			if ctx.Err() == nil {
				h.log.Debug("watching a plug-in ended", "plugin", h.cfg.Name, "err", err)
			}
			select {
			case <-time.After(minBack):
			case <-ctx.Done():
			}
		}
	}()
	defer func() { cancel(); <-watched }()
	for {
		select {
		case <-proc.done:
			*p = nil
			return proc.ended()
		case <-ctx.Done():
			return "its supervisor is ending"
		case <-tick.C:
			mu.Lock()
			silent := time.Since(heard)
			mu.Unlock()
			if silent > h.cfg.Times.Hang {
				return give(fmt.Sprintf("it was silent for %s, and was ended", silent.Round(time.Second)), 0)
			}
			go h.clear(ctx, l)
		}
	}
}

// handshake settles who is who.
func (h *host) handshake(ctx context.Context, l *link, p *process, secrets map[string]string) (facts, error) {
	res, err := call[pluginpb.HandshakeRequest, pluginpb.HandshakeResponse](ctx, l, "Handshake", shortCall, &pluginpb.HandshakeRequest{
		VersionMin: versionMin, VersionMax: versionMax, Instance: h.cfg.Instance, Name: h.cfg.Name,
		SettingsJson: string(h.cfg.Settings), Secrets: secrets, HostVersion: h.cfg.Version,
	})
	if err != nil {
		for _, s := range secrets { // whatever it says goes to the log, and to people
			if e := pcm.AsError(err); len(s) > 3 {
				err = pcm.Errorf(e.Code, "%s", hide(e.Message, s))
			}
		}
		return facts{}, err
	}
	if res.Version < versionMin || res.Version > versionMax {
		return facts{}, pcm.Errorf(pcm.Refused, "it speaks version %d of the contract of plug-ins, this peer versions %d to %d: take a plug-in or a PCM that fits", res.Version, versionMin, versionMax)
	}
	if res.Nonce != p.Nonce {
		return facts{}, pcm.Errorf(pcm.Refused, "what answers at its socket is not the process that was started: the handshake must answer with PCM_PLUGIN_NONCE")
	}
	f := facts{About: pcm.Clean(res.About, 128), LogsMS: res.LogsEveryMs, MaxBatch: int(min(res.MaxBatch, pcm.MaxBatch))}
	for _, r := range res.Roles {
		if name, ok := roleNames[r]; ok {
			f.Roles = append(f.Roles, name)
		}
	}
	return f, nil
}

// up lets everyone use the plug-in.
func (h *host) up(l *link, f facts, p *process) {
	s := p.state
	s.Trouble = ""
	if err := store(h.folders.stateFile(), s); err != nil {
		h.log.Error("can't record what a plug-in can do", "plugin", h.cfg.Name, "err", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link, h.facts, h.trouble = l, f, ""
	h.turn()
}

// down keeps everyone from it.
func (h *host) down(why string) {
	h.mu.Lock()
	h.link, h.trouble, h.snapshots = nil, why, 0
	h.turn()
	h.mu.Unlock()
}

// turn tells those who wait. mu is held.
func (h *host) turn() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// setTrouble tells the daemon why the plug-in can't be used.
func (h *host) setTrouble(why string) {
	h.mu.Lock()
	h.trouble = why
	h.mu.Unlock()
	s, err := loadState(h.folders.stateFile())
	if err != nil {
		s = state{Of: h.of}
	}
	s.Trouble = why
	if err := store(h.folders.stateFile(), s); err != nil {
		h.log.Warn("can't record the trouble with a plug-in", "plugin", h.cfg.Name, "err", err)
	}
}

// use is the way to the plug-in, or nil with the reason; changed is closed when that changes.
func (h *host) use() (l *link, why string, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.link, h.trouble, h.changed
}

// watch hears what becomes of attempts until the stream ends or falls silent.
func (h *host) watch(ctx context.Context, l *link, heard func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat := h.cfg.Times.Heartbeat
	silence := time.AfterFunc(3*beat, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, err := connect.NewClient[pluginpb.WatchRequest, pluginpb.WatchResponse](l.http, service+"Watch", l.opts...).CallServerStream(ctx,
		connect.NewRequest(&pluginpb.WatchRequest{HeartbeatMs: uint32(beat.Milliseconds())}))
	if err != nil {
		return l.fault("Watch", err)
	}
	defer stream.Close()
	h.mu.Lock()
	h.view++
	view := h.view // statuses of this stream carry it
	h.mu.Unlock()
	pace := newPace(maxMessages, maxStatuses)
	for stream.Receive() {
		silence.Reset(3 * beat)
		heard()
		msg := stream.Msg()
		h.hear(msg.Statuses, view)
		if msg.SnapshotComplete {
			h.complete(view)
		}
		if err := pace.wait(ctx, len(msg.Statuses)); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return l.fault("Watch", err)
	}
	return errors.New("the plug-in ended it")
}

var errSilent = errors.New("no heartbeat")

// What a plug-in may tell in one second.
const (
	maxMessages = 1000
	maxStatuses = 20_000
)

// pace slows down who tells too much; what isn't read yet waits at its sender.
type pace struct {
	messages, statuses int
	began              time.Time
	most, mostStatuses int
}

func newPace(messages, statuses int) *pace {
	return &pace{began: time.Now(), most: messages, mostStatuses: statuses}
}

func (p *pace) wait(ctx context.Context, statuses int) error {
	p.messages++
	p.statuses += statuses
	passed := time.Since(p.began)
	if passed >= time.Second {
		p.messages, p.statuses, p.began = 0, 0, time.Now()
		return nil
	}
	if p.messages < p.most && p.statuses < p.mostStatuses {
		return nil
	}
	select {
	case <-time.After(time.Second - passed):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hear takes statuses in.
func (h *host) hear(statuses []*pluginpb.Status, view int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, st := range statuses {
		k, err := adapters.ParseKey(st.GetKey())
		if err != nil || k.String() != st.GetKey() {
			h.passOver(st.GetKey(), "that is not the key of an attempt")
			continue
		}
		t := h.tracks[k]
		if t != nil && st.Fence != t.fence {
			h.passOver(st.GetKey(), fmt.Sprintf("its fence is %d, not %d", st.Fence, t.fence))
			continue
		}
		w := h.known[k]
		if w == nil {
			if len(h.known) >= maxKnown {
				h.passOver(st.GetKey(), "there are too many")
				continue
			}
			w = &told{}
			h.known[k] = w
			if t == nil {
				w.alone = time.Now()
			}
		}
		w.view = view
		w.ended = w.ended || st.State == pluginpb.State_STATE_ENDED
		if t != nil {
			t.hear(st)
		}
	}
}

// passOver notes a status that is not believed. mu is held.
func (h *host) passOver(key, why string) {
	h.foreign++
	if time.Since(h.warned) > time.Minute {
		h.warned = time.Now()
		h.log.Warn("a plug-in tells of an attempt that it was not given: passed over", "plugin", h.cfg.Name, "key", pcm.Clean(key, 96), "reason", why, "so_far", h.foreign)
	}
}

// complete ends a snapshot: what it lacked is not known to the plug-in any more.
func (h *host) complete(view int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshots++
	for k, w := range h.known {
		if w.view < view {
			delete(h.known, k)
		}
	}
	for k, t := range h.tracks {
		t.seen(h.known[k] != nil)
	}
}

// follow begins to track an attempt.
func (h *host) follow(k adapters.Key, fence uint64) *track {
	t := &track{fence: fence, poke: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tracks[k] = t
	if w := h.known[k]; w != nil {
		w.alone = time.Time{}
	}
	return t
}

// leave ends that.
func (h *host) leave(k adapters.Key, t *track) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tracks[k] == t {
		delete(h.tracks, k)
	}
	if w := h.known[k]; w != nil {
		w.alone = time.Now()
	} else if len(h.known) < maxKnown {
		h.known[k] = &told{view: h.view, ended: t.end() != nil, alone: time.Now()}
	}
}

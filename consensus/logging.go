package consensus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// raftLogger makes Raft and Badger speak through slog, one level quieter than
// they believe: what Raft calls an error (a peer that doesn't answer) is a
// warning to an operator, and its warnings are everyday life.
type raftLogger struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]time.Time // when a warning was last written
}

// A warning about a peer is repeated at most this often; at most maxWarnings
// different ones are remembered. maxAttr cuts what an attribute says.
const (
	warnEvery   = 10 * time.Second
	maxWarnings = 256
	maxAttr     = 200 // bytes
)

func newRaftLogger(log *slog.Logger) *raftLogger {
	return &raftLogger{log: log, last: map[string]time.Time{}}
}

// hclog is the logger as Raft wants it.
func (l *raftLogger) hclog() hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: io.Discard})
	h.RegisterSink(l)
	return h
}

// Accept implements hclog.SinkAdapter.
func (l *raftLogger) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < hclog.Info {
		return
	}
	to := slog.LevelDebug
	if level >= hclog.Error {
		to = slog.LevelWarn
	}
	l.write(to, name, msg, args...)
}

func (l *raftLogger) write(level slog.Level, name, msg string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	about := ""
	short := make([]any, len(args))
	for i, a := range args {
		short[i] = shortAttr(a)
		if i%2 == 1 {
			switch args[i-1] {
			case "peer", "target", "server-id":
				about = pcm.Short(fmt.Sprint(short[i]))
				short[i] = about
			}
		}
	}
	if level >= slog.LevelWarn && !l.fresh(msg+" "+about) {
		return
	}
	l.log.Log(context.Background(), level, msg, append([]any{"part", name}, short...)...)
}

// shortAttr is an attribute in few words: a server is its ID, hclog's own formats
// are formatted, long text is cut. Other values are left as they are.
func shortAttr(a any) any {
	var s string
	switch v := a.(type) {
	case raft.Server:
		s = string(v.ID)
	case hclog.Format:
		if len(v) > 0 {
			if f, ok := v[0].(string); ok {
				s = fmt.Sprintf(f, v[1:]...)
			}
		}
	case string:
		s = v
	case error:
		s = v.Error()
	case fmt.Stringer:
		s = v.String()
	default:
		return a
	}
	if len(s) > maxAttr {
		s = strings.ToValidUTF8(s[:maxAttr], "") + "…"
	}
	return s
}

// fresh tells whether a warning was not written within warnEvery.
func (l *raftLogger) fresh(msg string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.last[msg]) < warnEvery {
		return false
	}
	if len(l.last) >= maxWarnings {
		clear(l.last)
	}
	l.last[msg] = time.Now()
	return true
}

// Errorf and its siblings implement badger.Logger.
func (l *raftLogger) Errorf(format string, args ...any) {
	l.write(slog.LevelWarn, "badger", fmt.Sprintf(format, args...))
}
func (l *raftLogger) Warningf(format string, args ...any) {
	l.write(slog.LevelDebug, "badger", fmt.Sprintf(format, args...))
}
func (l *raftLogger) Infof(string, ...any)  {}
func (l *raftLogger) Debugf(string, ...any) {}

package plugin

import (
	"context"
	"os"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// maxClears is how many attempts are cleared away in one go.
const maxClears = 64

// clear removes at the plug-in what nobody follows any more: what has ended is
// forgotten, what hasn't is ended. One run at a time.
func (h *host) clear(ctx context.Context, l *link) {
	if !h.clearing.TryLock() {
		return
	}
	defer h.clearing.Unlock()
	type job struct {
		key   adapters.Key
		ended bool
	}
	var jobs []job
	h.mu.Lock()
	for k, w := range h.known {
		if h.tracks[k] == nil && !w.alone.IsZero() && time.Since(w.alone) >= h.cfg.Times.Orphan && len(jobs) < maxClears {
			jobs = append(jobs, job{k, w.ended})
			w.alone = time.Now() // tried again after as long
		}
	}
	h.mu.Unlock()
	for _, j := range jobs {
		key := j.key.String()
		if !j.ended {
			if _, err := call[pluginpb.StopRequest, pluginpb.StopResponse](ctx, l, "Stop", shortCall, &pluginpb.StopRequest{Key: key, Force: true}); err != nil {
				h.log.Warn("can't end what a plug-in runs for nobody", "plugin", h.cfg.Name, "attempt", key, "err", err)
			}
			continue
		}
		_, err := call[pluginpb.RemoveRequest, pluginpb.RemoveResponse](ctx, l, "Remove", removeCall, &pluginpb.RemoveRequest{Key: key})
		if err != nil && pcm.ErrorCode(err) != pcm.NotFound {
			h.log.Debug("a plug-in can't forget an attempt now", "plugin", h.cfg.Name, "attempt", key, "err", err)
			continue
		}
		h.forget(j.key)
	}
	// What held capacity and is gone holds none.
	for key := range h.held.keys() {
		k, err := adapters.ParseKey(key)
		h.mu.Lock()
		w := h.known[k]
		gone := err != nil || h.tracks[k] == nil && h.snapshots > 0 && (w == nil || w.ended)
		h.mu.Unlock()
		if gone {
			h.log.Info("what an attempt held is free again", "plugin", h.cfg.Name, "attempt", key)
			if err := h.held.release(key); err != nil {
				h.log.Warn("can't record that", "plugin", h.cfg.Name, "err", err)
			}
		}
	}
}

// forget drops an attempt that the plug-in has removed.
func (h *host) forget(k adapters.Key) {
	h.mu.Lock()
	if h.tracks[k] == nil {
		delete(h.known, k)
	}
	h.mu.Unlock()
	if h.folders.apart {
		if err := os.RemoveAll(h.folders.stageOf(k.String())); err != nil {
			h.log.Warn("can't remove what was staged for an attempt", "plugin", h.cfg.Name, "attempt", k.String(), "err", err)
		}
	}
}

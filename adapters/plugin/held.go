package plugin

import (
	"encoding/json"
	"maps"
	"os"
	"sync"

	"github.com/jointcloud/pcm"
)

// held is what attempts hold that the plug-in did not end when it was told to: it is
// kept out of the pools until they have ended. It lasts in a file, which the daemon reads.
type held struct {
	file string

	mu  sync.Mutex
	all map[string]holding
}

type holding struct {
	Pool pcm.PoolID    `json:"pool"`
	Each pcm.Resources `json:"each"`
}

const maxHeld = 20_000

func (h *held) load() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = loadHeld(h.file)
}

func loadHeld(name string) map[string]holding {
	all := map[string]holding{}
	if data, err := os.ReadFile(name); err == nil {
		json.Unmarshal(data, &all) // our own file; what is broken holds nothing
	}
	return all
}

func (h *held) add(key string, x holding) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[string]holding{}
	}
	if len(h.all) >= maxHeld {
		return pcm.Errorf(pcm.Busy, "%d attempts hold capacity already", maxHeld)
	}
	h.all[key] = x
	return store(h.file, h.all)
}

func (h *held) release(key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.all[key]; !ok {
		return nil
	}
	delete(h.all, key)
	return store(h.file, h.all)
}

func (h *held) keys() map[string]holding { h.mu.Lock(); defer h.mu.Unlock(); return maps.Clone(h.all) }

package wasm

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/jointcloud/pcm"
	"github.com/tetratelabs/wazero"
)

// modules keeps compiled modules, the least recently used going first. One that
// is in use is freed when its last user is done.
type modules struct {
	cfg     RunnerConfig
	runtime wazero.Runtime
	compile chan struct{} // capacity 1: compiling takes all cores and much memory

	mu    sync.Mutex
	known map[identity]*module
	order list.List // of *module, most recently used first
	bytes pcm.Bytes
}

// identity tells whether a file is still the one that was compiled.
type identity struct {
	path         string
	dev, ino     uint64
	size         int64
	mtime, ctime int64
}

type module struct {
	id       identity
	compiled wazero.CompiledModule
	element  *list.Element // nil: not kept
	users    int
}

func newModules(rt wazero.Runtime, cfg RunnerConfig) *modules {
	return &modules{cfg: cfg, runtime: rt, compile: make(chan struct{}, 1), known: map[identity]*module{}}
}

// get gives the compiled module of a file; put must follow. Faults of the
// module are *badModule.
func (c *modules) get(ctx context.Context, path string) (*module, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the module is not ready here: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return nil, &badModule{fmt.Errorf("the module is not a regular file")}
	}
	id := identity{path, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
	if m := c.lookup(id); m != nil {
		return m, nil
	}
	select {
	case c.compile <- struct{}{}:
		defer func() { <-c.compile }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if m := c.lookup(id); m != nil { // somebody else compiled it meanwhile
		return m, nil
	}
	if id.size > int64(c.cfg.MaxModule) {
		return nil, &badModule{fmt.Errorf("the module has %s: at most %s", pcm.Bytes(id.size), c.cfg.MaxModule)}
	}
	code, err := read(path, id.size)
	if err != nil {
		return nil, fmt.Errorf("can't read the module: %w", err)
	}
	compiled, err := c.runtime.CompileModule(context.WithoutCancel(ctx), code)
	if err != nil {
		return nil, &badModule{fmt.Errorf("not a WebAssembly module that can run here: %w", err)}
	}
	if err := runnable(compiled); err != nil {
		compiled.Close(ctx)
		return nil, &badModule{err}
	}
	return c.keep(&module{id: id, compiled: compiled, users: 1}), nil
}

func read(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	code := make([]byte, size)
	_, err = io.ReadFull(f, code)
	return code, err
}

// runnable refuses what would fail at its start, with a better reason.
func runnable(m wazero.CompiledModule) error {
	if _, ok := m.ExportedFunctions()["_start"]; !ok {
		return fmt.Errorf("the module exports no _start: it is a library, not a program")
	}
	for _, f := range m.ImportedFunctions() {
		if mod, name, _ := f.Import(); mod != "wasi_snapshot_preview1" {
			return fmt.Errorf("the module imports %s.%s: only wasi_snapshot_preview1 is to be had", mod, name)
		}
	}
	if len(m.ImportedMemories()) > 0 {
		return fmt.Errorf("the module imports its memory, which can't be had")
	}
	return nil
}

func (c *modules) lookup(id identity) *module {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.known[id]
	if m != nil {
		m.users++
		c.order.MoveToFront(m.element)
	}
	return m
}

func (c *modules) keep(m *module) *module {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[m.id] = m
	m.element = c.order.PushFront(m)
	c.bytes += pcm.Bytes(m.id.size)
	for c.order.Len() > 1 && (c.order.Len() > c.cfg.MaxModules || c.bytes > c.cfg.MaxCached) {
		old := c.order.Remove(c.order.Back()).(*module)
		delete(c.known, old.id)
		old.element = nil
		c.bytes -= pcm.Bytes(old.id.size)
		if old.users == 0 {
			old.compiled.Close(context.Background())
		}
	}
	return m
}

func (c *modules) put(m *module) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.users--; m.users == 0 && m.element == nil {
		m.compiled.Close(context.Background())
	}
}

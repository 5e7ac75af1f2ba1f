package wasm

import (
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// allocator gives one instance its linear memory: mapped from the kernel, so
// that it costs nothing before it is touched and goes back at once, and never
// beyond the limit. It is used by one goroutine.
type allocator struct {
	limit   uint64
	peak    uint64
	refused bool // more than the limit was wanted
	maps    []*mapping
}

// Allocate implements experimental.MemoryAllocator.
func (a *allocator) Allocate(_, most uint64) experimental.LinearMemory {
	m := &mapping{owner: a, most: min(most, a.limit)}
	a.maps = append(a.maps, m)
	return m
}

func (a *allocator) free() {
	for _, m := range a.maps {
		m.Free()
	}
}

type mapping struct {
	owner *allocator
	most  uint64
	data  []byte
}

// Reallocate implements experimental.LinearMemory: nil refuses. The whole range
// is reserved at first, so that the memory never moves.
func (m *mapping) Reallocate(size uint64) []byte {
	if size > m.most {
		m.owner.refused = true
		return nil
	}
	if m.data == nil && m.most > 0 {
		data, err := unix.Mmap(-1, 0, int(m.most), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return nil
		}
		m.data = data
	}
	m.owner.peak = max(m.owner.peak, size)
	return m.data[:size:len(m.data)]
}

// Free implements experimental.LinearMemory.
func (m *mapping) Free() {
	if m.data != nil {
		unix.Munmap(m.data)
		m.data = nil
	}
}

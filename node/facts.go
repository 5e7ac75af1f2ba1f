package node

import (
	"maps"

	"github.com/jointcloud/pcm"
)

// Facts are what the owner of a pool says of it, beside what its back end tells
// of itself. What is set goes before what was discovered.
type Facts struct {
	Class       string
	Accelerator *pcm.Accelerator
	Software    pcm.Software
	Network     *pcm.Network
	Disk        pcm.Bytes
}

// add completes the pool.
func (f Facts) add(p *pcm.Pool) {
	if f.Class != "" {
		p.Class = f.Class
	}
	if f.Accelerator != nil {
		p.Accelerator = f.Accelerator
	}
	if f.Network != nil {
		p.Network = f.Network
	}
	if f.Disk > 0 {
		p.Capacity.Disk = f.Disk
	}
	if len(f.Software) > 0 {
		all := pcm.Software{}
		maps.Copy(all, p.Software)
		maps.Copy(all, f.Software)
		p.Software = all
	}
}

package rules

import (
	"fmt"
	"strings"

	"github.com/jointcloud/pcm"
)

// roomIn says what a limit is, and how many more tasks it leaves room for: below
// zero if not even one task would have room where nothing is reserved.
func roomIn(l pcm.Limit, q *Question) (most string, room int) {
	all, slots := pcm.Resources{CPU: 1 << 40, Memory: 1 << 60, GPU: 1 << 40, Disk: 1 << 60}, unlimited
	var parts []string
	if l.Share > 0 {
		share := func(n int64) int64 { return n/100*int64(l.Share) + n%100*int64(l.Share)/100 }
		w := q.Whole
		all = pcm.Resources{CPU: pcm.MilliCPU(share(int64(w.CPU))), Memory: pcm.Bytes(share(int64(w.Memory))), GPU: share(w.GPU), Disk: pcm.Bytes(share(int64(w.Disk)))}
		slots = max(1, int(share(int64(q.Slots))))
		parts = append(parts, fmt.Sprintf("%d %%", l.Share))
	}
	if l.Tasks > 0 {
		slots = min(slots, l.Tasks)
		parts = append(parts, fmt.Sprintf("%d tasks", l.Tasks))
	}
	if l.CPU > 0 {
		all.CPU = min(all.CPU, l.CPU)
		parts = append(parts, l.CPU.String()+" cpu")
	}
	if l.Memory > 0 {
		all.Memory = min(all.Memory, l.Memory)
		parts = append(parts, l.Memory.String())
	}
	if l.GPU > 0 {
		all.GPU = min(all.GPU, l.GPU)
		parts = append(parts, fmt.Sprintf("%d gpu", l.GPU))
	}
	if all.Fits(q.Each, slots) < 1 {
		return strings.Join(parts, ", "), -1
	}
	return strings.Join(parts, ", "), all.Minus(q.Reserved).Fits(q.Each, max(0, slots-q.Tasks))
}

package machine

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const sampleEvery = 100 * time.Millisecond

// kin is a process and all that descend from it, as far as looking from time to
// time shows: who leaves its session and its parent between two looks escapes.
type kin struct {
	root   int
	memory int64 // that all may hold; 0: no bound
	one    func(pid int)

	mu        sync.Mutex
	known     map[int]uint64 // by process ID: when it began, in ticks
	hungriest int            // who holds most
	most      int64
	out       bool // killed for its memory
	left      bool
}

// census looks at all processes of the machine for all kin at once.
var census struct {
	sync.Mutex
	all  map[*kin]bool
	runs bool
}

func watch(pid int, memory int64, one func(int)) *kin {
	k := &kin{root: pid, memory: memory, one: one, known: map[int]uint64{}}
	k.look(processes())
	census.Lock()
	defer census.Unlock()
	if census.all == nil {
		census.all = map[*kin]bool{}
	}
	census.all[k] = true
	if !census.runs {
		census.runs = true
		go count()
	}
	return k
}

func count() {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for range ticker.C {
		census.Lock()
		all := make([]*kin, 0, len(census.all))
		for k := range census.all {
			all = append(all, k)
		}
		if len(all) == 0 {
			census.runs = false
			census.Unlock()
			return
		}
		census.Unlock()
		now := processes()
		for _, k := range all {
			k.look(now)
		}
	}
}

// process is a line of the machine's list of processes.
type process struct {
	pid, parent, session int
	began                uint64
	resident             int64
}

// processes lists all of the machine. Those that end meanwhile are left out.
func processes() []process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var all []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// The command stands in parentheses and may hold anything.
		_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
		f := strings.Fields(rest)
		if !ok || len(f) < 22 {
			continue
		}
		p := process{pid: pid}
		p.parent, _ = strconv.Atoi(f[1])
		p.session, _ = strconv.Atoi(f[3])
		p.began, _ = strconv.ParseUint(f[19], 10, 64)
		pages, _ := strconv.ParseInt(f[21], 10, 64)
		p.resident = pages * int64(os.Getpagesize())
		if f[0] != "Z" {
			all = append(all, p)
		}
	}
	return all
}

// look finds who belongs to the kin, and kills them if they hold too much.
func (k *kin) look(all []process) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left {
		return
	}
	resident := k.count(all)
	k.most = max(k.most, resident)
	if k.memory > 0 && resident > k.memory {
		k.out = true
		if k.one == nil {
			k.send(syscall.SIGKILL)
			return
		}
		k.one(k.hungriest)
		_ = syscall.Kill(k.hungriest, syscall.SIGKILL)
	}
}

func (k *kin) count(all []process) (resident int64) {
	now := map[int]process{}
	for _, p := range all {
		if p.pid == k.root || p.session == k.root || k.known[p.pid] == p.began && p.began > 0 {
			now[p.pid] = p
		}
	}
	for more := true; more; { // children may stand before their parents
		more = false
		for _, p := range all {
			if _, is := now[p.pid]; is {
				continue
			}
			_, child := now[p.parent]
			_, peer := now[p.session]
			if child || peer {
				now[p.pid], more = p, true
			}
		}
	}
	clear(k.known)
	var most int64
	for pid, p := range now {
		k.known[pid] = p.began
		resident += p.resident
		if p.resident > most {
			k.hungriest, most = pid, p.resident
		}
	}
	return resident
}

// send gives all a signal. Those that are killed are halted first: none is left to
// see another one die, and say so.
func (k *kin) send(s syscall.Signal) {
	if s == syscall.SIGKILL {
		k.send(syscall.SIGSTOP)
	}
	for pid := range k.known {
		_ = syscall.Kill(pid, s)
	}
}

// signal reaches all that there are now.
func (k *kin) signal(s syscall.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.left {
		k.count(processes())
		k.send(s)
	}
}

// kill ends all, also those that are started meanwhile.
func (k *kin) kill() {
	for range 3 {
		k.signal(syscall.SIGKILL)
	}
}

// leave ends what is left when the first process has been waited for.
func (k *kin) leave() (most int64, out bool) {
	census.Lock()
	delete(census.all, k)
	census.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, k.root)
	for range 3 {
		k.count(without(processes(), k.root))
		k.send(syscall.SIGKILL)
	}
	k.left = true
	return k.most, k.out
}

// without leaves out a process whose number may be another's by now.
func without(all []process, pid int) []process {
	kept := all[:0]
	for _, p := range all {
		if p.pid != pid {
			kept = append(kept, p)
		}
	}
	return kept
}

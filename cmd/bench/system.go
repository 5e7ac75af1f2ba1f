package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fsyncTimes measures what a durable append of 4 KiB costs on the disk of dir.
func fsyncTimes(dir string) (p50, p99 time.Duration, err error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	var times []time.Duration
	for range 300 {
		begun := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, 0, err
		}
		times = append(times, time.Since(begun))
	}
	return quantile(times, 0.5), quantile(times, 0.99), nil
}

// quantile sorts the times.
func quantile(times []time.Duration, q float64) time.Duration {
	slices.Sort(times)
	return times[min(len(times)-1, int(q*float64(len(times))))]
}

// loadAverage is that of the last minute; "unknown" where /proc does not tell.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(data), " ")
	return first
}

// usage is what a process has used.
type usage struct {
	cpu      time.Duration // its own
	children time.Duration // of children that it has waited for
	rss      int64         // bytes
	anon     int64         // of these what is no file's: mapped tables go when others need the room
}

func (u usage) minus(o usage) usage {
	return usage{u.cpu - o.cpu, u.children - o.children, u.rss, u.anon}
}

// tick is the unit of CPU times in /proc on every Linux that Go supports.
const tick = 10 * time.Millisecond

// usageOf reads a process's use from /proc/PID/stat; see proc_pid_stat(5).
func usageOf(pid int) (usage, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	// The name, in parentheses, may hold spaces.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 22 {
		return usage{}, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	var n [22]int64
	for i := 1; i < 22; i++ {
		n[i], _ = strconv.ParseInt(fields[i], 10, 64) // the ones that are read are numbers
	}
	// size resident shared: see proc_pid_statm(5)
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return usage{}, err
	}
	var size, resident, shared int64
	if _, err := fmt.Sscan(string(statm), &size, &resident, &shared); err != nil {
		return usage{}, fmt.Errorf("/proc/%d/statm: %w", pid, err)
	}
	return usage{
		cpu:      time.Duration(n[11]+n[12]) * tick,
		children: time.Duration(n[13]+n[14]) * tick,
		rss:      n[21] * int64(os.Getpagesize()),
		anon:     (resident - shared) * int64(os.Getpagesize()),
	}, nil
}

// supervisorOf finds the supervisor of a data folder by its command line; 0 if
// there is none yet.
func supervisorOf(data string) int {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	want := strconv.Quote(filepath.Join(data, "tasks"))
	for _, name := range lines {
		line, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		args := strings.Split(string(line), "\x00")
		if len(args) > 2 && args[1] == "supervise" && strings.Contains(args[2], want) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return pid
		}
	}
	return 0
}

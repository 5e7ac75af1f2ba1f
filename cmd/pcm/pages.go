package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startOver = 5 * time.Second // when what only the start needs is needed no more
	lookEvery = time.Minute
	atRest    = 4 // with less than one part of so many of a core there is little to do
)

// settle gives back what is not in use: garbage, and the pages of this program's file
// that were read once; after the start, and when there was little to do for a minute. Those pages are the kernel's
// cache, which counts as ours while it is mapped, and is the last to go then. What is used comes back by itself.
func settle(ctx context.Context, log *slog.Logger) {
	timer := time.NewTimer(startOver)
	defer timer.Stop()
	last := time.Duration(-1)
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		used := cpuTime()
		if last < 0 || used-last < lookEvery/atRest {
			debug.FreeOSMemory()
			if err := unmapProgram(); err != nil {
				log.Debug("can't give back what was read of the program", "err", err)
			}
		}
		last = cpuTime()
		timer.Reset(lookEvery)
	}
}

// cpuTime is what this process has used of the machine's cores.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// unmapProgram gives back the pages of the program's file, where nothing was written to any.
func unmapProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	parts, err := cleanParts(f, exe)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, p.begin, p.end-p.begin, unix.MADV_DONTNEED); e != 0 {
			return os.NewSyscallError("madvise", e)
		}
	}
	return nil
}

// mapped is a part of a file that is mapped.
type mapped struct{ begin, end uintptr }

// cleanParts reads smaps, see proc_pid_smaps(5): what is mapped of a file, can't be
// written to, and has no page that ever was: such pages can be read again.
func cleanParts(smaps io.Reader, file string) (all []mapped, err error) {
	var at mapped
	ours := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) >= 5 && !strings.HasSuffix(words[0], ":"): // 00400000-01a2b000 r-xp 00000000 fe:00 1234 /usr/bin/pcm
			ours = len(words) == 6 && words[5] == file && (words[1] == "r-xp" || words[1] == "r--p")
			if ours {
				if _, err := fmt.Sscanf(words[0], "%x-%x", &at.begin, &at.end); err != nil {
					return nil, err
				}
			}
		case ours && len(words) >= 2 && words[0] == "Anonymous:":
			if words[1] == "0" && at.end > at.begin {
				all = append(all, at)
			}
			ours = false
		}
	}
	return all, lines.Err()
}

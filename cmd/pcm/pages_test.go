package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestCleanParts(t *testing.T) {
	const smaps = `00400000-01a00000 r-xp 00000000 fe:00 1234                               /usr/bin/pcm
Rss:               15000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01a00000-02a00000 r--p 01600000 fe:00 1234                               /usr/bin/pcm
Anonymous:             4 kB
02a00000-02b00000 rw-p 02600000 fe:00 1234                               /usr/bin/pcm
Anonymous:             0 kB
02b00000-02c00000 r--p 02600000 fe:00 1234                               /usr/bin/pcm
Anonymous:             0 kB
c000000000-c004000000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000100000 r--p 00000000 fe:00 99                         /usr/lib/libc.so.6
Anonymous:             0 kB
`
	got, err := cleanParts(strings.NewReader(smaps), "/usr/bin/pcm")
	if want := fmt.Sprint([]mapped{{0x400000, 0x1a00000}, {0x2b00000, 0x2c00000}}); err != nil || fmt.Sprint(got) != want {
		t.Errorf("%x, %v", got, err)
	}
}

// What is given back comes again when it is used, and less is held until then.
func TestUnmapProgram(t *testing.T) {
	before := fileKiB(t)
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	if after := fileKiB(t); after >= before {
		t.Errorf("%d KiB of files are mapped, %d before", after, before)
	}
}

// fileKiB is how much of files this process has in memory.
func fileKiB(t *testing.T) (n int) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &n); err == nil {
			return n
		}
	}
	t.Fatal("there is no RssFile")
	return 0
}

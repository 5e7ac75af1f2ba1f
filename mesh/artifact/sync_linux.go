package artifact

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// syncAll makes everything written to dir's file system durable.
func syncAll(dir string) (done bool, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return true, unix.Syncfs(int(f.Fd()))
}

// bootID names this run of the machine; "" if unknown.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

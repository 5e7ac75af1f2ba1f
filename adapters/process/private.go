package process

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// private gives a copy of a program, in memory, to be run in its stead. Whoever
// runs a program shows it to the sandbox as /proc/PID/exe, there with the host's
// mount, and its owner may change it by that name: a sandbox must get a copy of
// what its user owns.
func private(name string) (*os.File, error) {
	from, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate("pcm-sandbox-program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	to := os.NewFile(uintptr(fd), "program")
	defer to.Close() // what is open for writing can't be run
	if _, err := io.Copy(to, from); err != nil {
		return nil, fmt.Errorf("can't copy %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return nil, os.NewSyscallError("seal", err)
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(to.Fd())))
}

// ours tells whether this user owns a program, and so could change it.
func ours(name string) bool {
	var st syscall.Stat_t
	return syscall.Stat(name, &st) != nil || int(st.Uid) == os.Geteuid()
}

package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refused are the system calls that no task needs and that reach far into the
// kernel: the ways to new namespaces and mounts, into other processes, into the
// kernel itself, and round a filter.
var refused = []string{
	"acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "create_module", "delete_module",
	"fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter",
	"io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
	"lookup_dcookie", "mount", "mount_setattr", "move_mount", "name_to_handle_at", "nfsservctl", "open_by_handle_at",
	"open_tree", "perf_event_open", "pidfd_getfd", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace",
	"quotactl", "quotactl_fd", "reboot", "request_key", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff",
	"swapon", "syslog", "umount2", "unshare", "userfaultfd", "vhangup",
}

// sockets are those that a task may make.
type sockets int

const (
	noSockets  sockets = iota
	tcpSockets         // which Landlock can bound; no others, which it can't
	allSockets
)

// shared are the system calls that reach processes and memory of the same user
// by number: what namespaces keep apart, and Landlock does not.
var shared = []string{
	"mq_open", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmget",
	"migrate_pages", "move_pages", "process_madvise", "process_mrelease", "sched_setattr",
}

// policy refuses those, and sockets; unless spaced, the shared as well.
func policy(may sockets, spaced bool) (*seccomp.Policy, error) {
	here, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("no filter of system calls for this machine: %w", err)
	}
	known := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := here.SyscallNames[n]; return !ok })
	}
	no := known(refused...)
	if !spaced {
		no = append(no, known(shared...)...)
	}
	if may == noSockets {
		no = append(no, known("socket", "socketcall")...)
	}
	const spaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	conditions := []seccomp.NameWithConditions{
		{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: spaces}}},
		{Name: "ioctl", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.Equal, Value: unix.TIOCSTI}}},
		{Name: "ioctl", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.Equal, Value: unix.TIOCLINUX}}},
	}
	if !spaced { // of itself it may
		conditions = append(conditions,
			seccomp.NameWithConditions{Name: "prlimit64", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: 0}}},
			seccomp.NameWithConditions{Name: "setpriority", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.NotEqual, Value: 0}}},
		)
	}
	if may == tcpSockets {
		const stream = unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
		conditions = append(conditions,
			seccomp.NameWithConditions{Name: "socket", Conditions: seccomp.ArgumentConditions{
				{Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_INET}, {Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_INET6}}},
			seccomp.NameWithConditions{Name: "socket", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.BitsSet, Value: 0xffffffff &^ stream}}},
			seccomp.NameWithConditions{Name: "socket", Conditions: seccomp.ArgumentConditions{
				{Argument: 2, Operation: seccomp.NotEqual, Value: 0}, {Argument: 2, Operation: seccomp.NotEqual, Value: unix.IPPROTO_TCP}}},
		)
	}
	return &seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
		// Its flags are behind a pointer, where no filter sees them: C libraries fall back to clone.
		{Names: known("clone3"), Action: seccomp.ActionErrno | seccomp.Action(syscall.ENOSYS)},
		{Names: no, Action: seccomp.ActionErrno},
		{NamesWithCondtions: conditions, Action: seccomp.ActionErrno},
	}}, nil
}

// writeFilter writes the policy as bubblewrap takes it, and gives the file's
// name; "" where this machine's system calls are not known.
func writeFilter(dir string) (string, error) {
	p, err := policy(allSockets, true)
	if err != nil {
		return "", nil
	}
	program, err := p.Assemble()
	if err != nil {
		return "", err
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		return "", err
	}
	var buf bytes.Buffer
	for _, in := range raw { // struct sock_filter
		binary.Write(&buf, binary.NativeEndian, in)
	}
	name := filepath.Join(dir, "sandbox", "seccomp.bpf")
	tmp := name + ".new"
	if err := os.WriteFile(tmp, buf.Bytes(), 0o600); err != nil {
		return "", err
	}
	return name, os.Rename(tmp, name)
}

package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"unsafe"

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

// owned are those that change who may do what with a file, which Landlock lets
// pass: the owner of the node's files is the task's user.
var owned = []string{
	"chmod", "chown", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fremovexattr", "fsetxattr", "lchown", "lremovexattr", "lsetxattr",
	"removexattr", "removexattrat", "setxattr", "setxattrat",
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
		no = append(append(no, known(shared...)...), known(owned...)...)
	}
	if may == noSockets {
		no = append(no, known("socket", "socketcall")...)
	}
	const spaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	var conditions []seccomp.NameWithConditions
	refuse := func(name string, when ...seccomp.Condition) {
		if len(known(name)) > 0 {
			conditions = append(conditions, seccomp.NameWithConditions{Name: name, Conditions: when})
		}
	}
	not := func(argument uint32, values ...uint64) (when []seccomp.Condition) {
		for _, v := range values {
			when = append(when, seccomp.Condition{Argument: argument, Operation: seccomp.NotEqual, Value: v})
		}
		return when
	}
	refuse("clone", seccomp.Condition{Argument: 0, Operation: seccomp.BitsSet, Value: spaces})
	refuse("ioctl", low32(1, unix.TIOCSTI)...)
	refuse("ioctl", low32(1, unix.TIOCLINUX)...)
	// Others reach what no namespace holds, as the machine that this one is a guest of.
	families := []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}
	if may == tcpSockets {
		const stream = unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
		families = []uint64{unix.AF_INET, unix.AF_INET6}
		refuse("socket", seccomp.Condition{Argument: 1, Operation: seccomp.BitsSet, Value: 0xffffffff &^ stream})
		refuse("socket", not(2, 0, unix.IPPROTO_TCP)...)
	}
	if may != noSockets {
		refuse("socket", not(0, families...)...)
	}
	if !spaced { // of itself it may
		refuse("prlimit64", not(0, 0)...)
		refuse("sched_setscheduler", not(0, 0)...)
		refuse("sched_setparam", not(0, 0)...)
		refuse("setpriority", not(0, unix.PRIO_PROCESS)...) // else all of the user's
		refuse("setpriority", not(1, 0)...)
		refuse("ioprio_set", not(0, onlyProcess)...)
		refuse("ioprio_set", not(1, 0)...)
		refuse("ioctl", low32(1, unix.FS_IOC_SETFLAGS)...)
		refuse("ioctl", low32(1, fsSetAttributes)...)
	}
	return &seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
		// Its flags are behind a pointer, where no filter sees them: C libraries fall back to clone.
		{Names: known("clone3"), Action: seccomp.ActionErrno | seccomp.Action(syscall.ENOSYS)},
		{Names: no, Action: seccomp.ActionErrno},
		{NamesWithCondtions: conditions, Action: seccomp.ActionErrno},
	}}, nil
}

const (
	fsSetAttributes = 0x401c5820 // FS_IOC_FSSETXATTR of linux/fs.h
	onlyProcess     = 1          // IOPRIO_WHO_PROCESS of linux/ioprio.h
)

// low32 holds when an argument is v, of which the kernel takes 32 bits, whatever
// stands above these.
func low32(argument uint32, v uint32) []seccomp.Condition {
	when := []seccomp.Condition{{Argument: argument, Operation: seccomp.BitsNotSet, Value: uint64(^v)}}
	for ; v != 0; v &= v - 1 {
		when = append(when, seccomp.Condition{Argument: argument, Operation: seccomp.BitsSet, Value: uint64(v & -v)})
	}
	return when
}

// assemble makes the filter. The library would let all calls of another
// architecture pass, as those of 32-bit programs: they end the program. What is
// newer than its tables is not there.
func assemble(p *seccomp.Policy) ([]bpf.RawInstruction, error) {
	here, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	newest := 0
	for n := range here.SyscallNumbers {
		newest = max(newest, n)
	}
	program, err := p.Assemble()
	if err != nil {
		return nil, err
	}
	const numberAt, archAt = 0, 4 // in struct seccomp_data
	return bpf.Assemble(append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: archAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(here.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(seccomp.ActionKillProcess)},
		bpf.LoadAbsolute{Off: numberAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(newest), SkipFalse: 1},
		bpf.RetConstant{Val: uint32(seccomp.ActionErrno) | uint32(syscall.ENOSYS)},
	}, program...))
}

// loadFilter puts the policy on this thread, for good.
func loadFilter(p *seccomp.Policy) error {
	raw, err := assemble(p)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}

// writeFilter writes the policy as bubblewrap takes it, and gives the file's
// name; "" where this machine's system calls are not known.
func writeFilter(dir string) (string, error) {
	p, err := policy(allSockets, true)
	if err != nil {
		return "", nil
	}
	raw, err := assemble(p)
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
